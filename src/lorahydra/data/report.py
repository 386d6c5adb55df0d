"""The data report: what was read, how it was split, and what is wrong or suspicious in it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lorahydra.data.problems import MAX_PROBLEMS, Fault, Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from lorahydra.data.ingest import Rows
    from lorahydra.data.length_limits import Fit
    from lorahydra.data.splits import Split

__all__ = ["DataReport", "Leakage", "LengthStats", "SourceReport", "SplitReport", "describe_splits"]

BINS = 10
SHOWN = 20
"""Names in a warning."""
SYNONYMS = {"system_prompt": "system", "system_message": "system", "functions": "tools"}
"""Other names of columns that are used where `data.columns` says so."""


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
        return cls(
            min=low,
            median=float(np.median(lengths)),
            mean=float(np.mean(lengths)),
            p95=float(np.percentile(lengths, 95)),
            max=high,
            bin_edges=edges,
            counts=[int(count) for count in counts],
        )


@dataclass
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
    """Rows of which answers at the end are left out, since they carry no loss."""
    empty_answers: int
    undecodable_lines: int
    problems: int
    """All rows with a problem, those of the two kinds above included."""


@dataclass
class SplitReport:
    """What a split holds after splitting and after `max_train_rows` or `max_eval_rows`."""

    name: str
    source: str
    digest: str
    rows: int
    duplicates: int
    """Rows whose whole conversation stands earlier in the same split."""
    lengths: LengthStats | None = None
    """None where no tokenizer was given."""
    over_limit: int | None = None
    """Rows longer than `data.max_length`, or than the model's context; None where no tokenizer was given."""
    without_room: int | None = None
    """Rows whose prompt leaves no room for `evaluation.max_new_tokens` in the model's context; None where no tokenizer
    was given."""


@dataclass(frozen=True)
class Leakage:
    """Rows of one split that another one gives away."""

    of: str
    """The split whose rows are counted."""
    into: str
    """The split where they are found."""
    same_prompt: int
    """Rows whose prompt (everything before the last answer) is in the other split, whatever the answer."""
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

    def add_sources(self, sources: Iterable[Rows]) -> None:
        """Tell what was found in reading; several splits of one source count once."""
        for rows in sources:
            self.sources.append(
                SourceReport(
                    source=rows.source,
                    rows=len(rows),
                    format=rows.format,
                    columns_used=rows.columns_used,
                    columns_ignored=rows.columns_ignored,
                    keys_ignored=rows.keys_ignored,
                    rows_cut=rows.rows_cut,
                    empty_answers=rows.counts.get(Fault.EMPTY_ANSWER, 0),
                    undecodable_lines=rows.counts.get(Fault.UNDECODABLE, 0),
                    problems=rows.total_problems,
                )
            )
            self.problems += rows.problems
            self.total_problems += rows.total_problems
            self.warnings += _left_out(rows)

    def add_fit(self, split: str, fit: Fit) -> None:
        """Tell the token lengths of the examples of a split, and what the limits do to them."""
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


def _left_out(rows: Rows) -> Iterator[str]:
    """What a source holds that is not used, one line each."""
    if rows.columns_ignored:
        known = [(column, SYNONYMS[column.lower()]) for column in rows.columns_ignored if column.lower() in SYNONYMS]
        hints = [f"data.columns.{name}={column} uses it" for column, name in known]
        shown = ", ".join(rows.columns_ignored[:SHOWN])
        yield f"{rows.source}: columns not used: {shown}" + (f" ({', '.join(hints)})" if hints else "")
    if rows.keys_ignored:
        yield f"{rows.source}: keys of messages not used: {', '.join(rows.keys_ignored[:SHOWN])}"
    if rows.rows_cut:
        yield (
            f"{rows.source}: answers of weight 0 at the end of {rows.rows_cut} of {len(rows)} rows are left out, with "
            "the turns that lead to them"
        )


def describe_splits(report: DataReport, splits: Mapping[str, Split]) -> None:
    """Add the splits to a report, with duplicates inside and leakage between them."""
    for split in splits.values():
        keys = split.example_keys()
        duplicates = len(keys) - len(np.unique(keys))
        report.splits.append(SplitReport(split.name, split.source, split.digest, len(split), duplicates))
        if duplicates:
            report.warnings.append(f"{split.name}: {duplicates} of {len(split)} rows are duplicates")
    for seen, held in combinations(splits.values(), 2):
        leakage = Leakage(
            of=held.name,
            into=seen.name,
            same_prompt=int(np.isin(held.prompt_keys(), seen.prompt_keys()).sum()),
            same_example=int(np.isin(held.example_keys(), seen.example_keys()).sum()),
        )
        report.leakage.append(leakage)
        if leakage.same_prompt:
            report.warnings.append(
                f"{leakage.same_prompt} of {len(held)} {held.name} prompts are also in {seen.name} "
                f"({leakage.same_example} with the same answer)"
            )
