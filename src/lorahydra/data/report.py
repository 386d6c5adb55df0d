"""The data report: what was read, how it was split, and what is wrong or suspicious in it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from lorahydra.data.length_limits import Fit
from lorahydra.data.personal import PersonalData
from lorahydra.data.problems import MAX_PROBLEMS, Problem
from lorahydra.data.schemes import PREFERENCE

__all__ = ["DataReport", "Leakage", "LengthStats", "SourceReport", "SplitPart", "SplitReport"]

BINS = 10


@dataclass(frozen=True)
class LengthStats:
    """Lengths of a split's examples in tokens, prompt and answer together, before any is cut or dropped."""

    min: int
    median: float
    mean: float
    p95: float
    max: int
    bin_edges: list[int]
    """One more than `counts`; bin i holds lengths from edge i up to but not including edge i + 1."""
    counts: list[int]

    @classmethod
    def of(cls, lengths: npt.NDArray[np.int64]) -> LengthStats:
        """Statistics of at least one length."""
        low, high = int(lengths.min()), int(lengths.max())
        step = max(1, -(-(high - low + 1) // BINS))
        edges = list(range(low, high + step + 1, step))
        counts, _ = np.histogram(lengths, edges)
        middle, p95 = (float(np.percentile(lengths, share)) for share in (50, 95))
        return cls(low, middle, float(np.mean(lengths)), p95, high, edges, [int(count) for count in counts])


@dataclass(frozen=True)
class SourceReport:
    """What was found in one file or hub split."""

    source: str
    rows: int
    """Valid rows."""
    format: str
    """Column scheme; empty if none could be told."""
    columns_used: dict[str, str]
    """Scheme column → column of the source."""
    columns_ignored: list[str]
    keys_ignored: list[str]
    """Keys of messages that hold something and are not used."""
    rows_cut: int
    """Rows whose answers at the end are left out, since they carry no loss."""
    empty_answers: int
    undecodable_lines: int
    problems: int
    """All rows with a problem, those of the two kinds above included."""
    personal_data: list[PersonalData] = field(default_factory=list)
    """Personal data and secrets by kind; none are looked for with `data.pii=off`."""

    @property
    def holds_pairs(self) -> bool:
        """Whether its rows are pairs of answers."""
        return self.format == PREFERENCE.name


@dataclass(frozen=True)
class SplitPart:
    """The rows of a split that come from one of several files."""

    source: str
    digest: str
    rows: int
    """Rows that are used; a weight of 2 counts each twice."""


@dataclass
class SplitReport:
    """What a split holds after splitting and after `max_train_rows` or `max_eval_rows`."""

    name: str
    source: str
    digest: str
    rows: int
    duplicates: int
    """Rows whose whole conversation also comes earlier in the same split."""
    lengths: LengthStats | None = None
    """None without a tokenizer, as are the next two."""
    over_limit: int | None = None
    """Rows longer than `data.max_length`, or than the model's context."""
    without_room: int | None = None
    """Rows whose prompt leaves no room for `evaluation.max_new_tokens` in the model's context."""
    parts: list[SplitPart] = field(default_factory=list)
    """What comes from each file, where there are several."""


@dataclass(frozen=True)
class Leakage:
    """Rows of one split that another one gives away."""

    of: str
    """The split whose rows are counted."""
    into: str
    """The split where they are found."""
    same_prompt: int
    """Rows whose prompt (everything before the last answer) is in the other split, with any answer."""
    same_example: int
    """Rows that are in the other split as a whole; they count as `same_prompt` too."""


@dataclass
class DataReport:
    """Everything that `lorahydra data check` prints; as JSON it is the artifact `data/report.json`."""

    sources: list[SourceReport] = field(default_factory=list)
    splits: list[SplitReport] = field(default_factory=list)
    leakage: list[Leakage] = field(default_factory=list)
    max_length: int | None = None
    """`data.max_length`, where lengths were measured."""
    problems: list[Problem] = field(default_factory=list)
    """The first problems of each source."""
    total_problems: int = 0
    warnings: list[str] = field(default_factory=list)

    @property
    def pairs_in(self) -> SourceReport | None:
        """The first source with pairs of answers, if there is one."""
        return next((source for source in self.sources if source.holds_pairs), None)

    @property
    def ok(self) -> bool:
        """Whether the data can be trained on."""
        return self.total_problems == 0

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {"ok": self.ok, **asdict(self)}

    def add_problem(self, problem: Problem) -> None:
        """Count a problem and keep it while there is room."""
        self.total_problems += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)

    def add_fit(self, split: str, fit: Fit) -> None:
        """Report the token lengths of the examples of a split, and what the limits do to them."""
        self.max_length = fit.max_length
        for part in self.splits:
            if part.name == split and len(fit.lengths):
                part.lengths = LengthStats.of(fit.lengths)
                part.over_limit = int(fit.over.sum())
                part.without_room = int(fit.without_room.sum())
        self.warnings += fit.warnings(split)
        if split == "test" and not len(fit.used):
            self.warnings.append(
                "no row of the test split is left: the winner of a study cannot be scored on unseen rows"
            )
