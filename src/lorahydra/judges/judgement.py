"""The outcome of judging some examples: verdicts, missing ones, and what is computed from them."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence

from lorahydra.errors import LorahydraError
from lorahydra.judges.asking import JudgeCall
from lorahydra.judges.base import Verdict
from lorahydra.judges.session import JudgeSession
from lorahydra.utils.progress import Progress

__all__ = ["Judgement", "mean"]


class Judgement:
    """The judging of some examples, and its results; made by `start_judging`, complete after `wait`.

    Lists have an entry for each example, in their order.
    """

    session: JudgeSession
    chosen: int
    """Number of the examples to judge."""
    verdicts: list[tuple[Verdict, ...]]
    """As many as there are repeats, less those that are missing; none for an example that is not judged."""
    missing: list[str | None]
    """Why a verdict is missing; None if none is missing."""
    calls: list[JudgeCall]
    cache_hits: int
    error: LorahydraError | None
    """What ended judging early, where something did."""
    failures: int
    """Verdicts that are missing; equal cases count once."""
    seconds: float
    """Wall time from the first call to the last verdict."""
    left_out: frozenset[int] = frozenset()
    """Examples whose verdicts do not count, see `without`."""

    members: Mapping[str, Judgement] = {}
    """The judgements of a panel's members, by name; empty for a single judge."""

    @property
    def given(self) -> list[float | None]:
        """Mean score of each example, 0…100; None without a verdict."""
        return [mean([verdict.score for verdict in each]) if each else None for each in self.verdicts]

    @property
    def scores(self) -> list[float | None]:
        """The `given` scores that count; None for the others."""
        return [None if example in self.left_out else score for example, score in enumerate(self.given)]

    @property
    def score(self) -> float | None:
        """Mean over the examples with a verdict that counts; None if there is none."""
        counting = [score for score in self.scores if score is not None]
        return mean(counting) if counting else None

    @property
    def criteria(self) -> list[str | None]:
        """Mean score of each criterion, 0…5, as text; None without a verdict."""
        return [
            ", ".join(f"{name} {mean([verdict.scores[name] for verdict in each]):g}" for name in each[0].scores)
            if each
            else None
            for each in self.verdicts
        ]

    @property
    def reasons(self) -> list[str | None]:
        """What the judge said, or why it said nothing; None for an example that is not judged."""
        return [
            "\n".join(verdict.reasoning for verdict in each) or missing
            for each, missing in zip(self.verdicts, self.missing, strict=True)
        ]

    @property
    def judged(self) -> int:
        """Number of the examples with a verdict that counts."""
        return sum(score is not None for score in self.scores)

    @property
    def coverage(self) -> float:
        """Share of the examples to judge that have a verdict."""
        return sum(bool(each) for each in self.verdicts) / self.chosen

    @property
    def models(self) -> list[str]:
        """Models that gave the verdicts."""
        return sorted({verdict.model for each in self.verdicts for verdict in each})

    @property
    def main_fault(self) -> str:
        """The most frequent reason for missing verdicts; empty when none is missing."""
        [(reason, _)] = Counter(filter(None, self.missing)).most_common(1) or [("", 0)]
        return reason

    def without(self, examples: frozenset[int]) -> Judgement:
        """The judgement, in which the verdicts on some examples do not count."""
        other = copy.copy(self)
        other.left_out = examples
        return other

    @abstractmethod
    def stop(self) -> None:
        """Begin no further call."""

    @abstractmethod
    def wait(self, progress: Progress | None = None) -> Judgement:
        """Wait for the verdicts, and return the judgement; missing ones are part of it, not an exception."""


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean of at least one number."""
    return sum(values) / len(values)
