"""What comes of judging: verdicts for each case, what they took, and every call."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass

from lorahydra.errors import LorahydraError
from lorahydra.judges.base import JudgePrompt, Verdict

__all__ = ["CaseVerdicts", "JudgeCall", "Judgement", "Usage"]


@dataclass(frozen=True)
class JudgeCall:
    """One call of a judge, for the record."""

    prompt: JudgePrompt
    model: str
    """The model that answered, or that was asked."""
    reply: str | None
    """What came back; None without a reply."""
    score: float | None
    """The verdict's score, 0…100."""
    fault: str | None
    """Why there is no verdict."""
    attempt: int
    """1 for the first call for an example."""
    start_ns: int
    """Nanoseconds since the epoch."""
    end_ns: int
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Usage:
    """What judging took."""

    calls: int = 0
    cache_hits: int = 0
    retries: int = 0
    failures: int = 0
    """Verdicts that are missing in the end."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))


@dataclass(frozen=True)
class CaseVerdicts:
    """The verdicts of one case: as many as there are repeats, less those that are missing."""

    verdicts: tuple[Verdict, ...]
    missing: str | None
    """Why one is missing; None when all are there."""

    @property
    def score(self) -> float | None:
        """Mean score, 0…100; None without a verdict."""
        if not self.verdicts:
            return None
        return sum(verdict.score for verdict in self.verdicts) / len(self.verdicts)

    @property
    def criteria(self) -> str | None:
        """Mean score of each criterion, 0…5, as text; None without a verdict."""
        if not self.verdicts:
            return None
        means = {
            name: sum(verdict.scores[name] for verdict in self.verdicts) / len(self.verdicts)
            for name in self.verdicts[0].scores
        }
        return ", ".join(f"{name} {mean:g}" for name, mean in means.items())

    @property
    def reasoning(self) -> str | None:
        """What the judge said, or why it said nothing."""
        return "\n".join(verdict.reasoning for verdict in self.verdicts) or self.missing


@dataclass(frozen=True)
class Judgement:
    """What came of judging some cases."""

    cases: list[CaseVerdicts]
    """In the order of the cases."""
    usage: Usage
    calls: list[JudgeCall]
    error: LorahydraError | None
    """What ended judging early, where something did."""
    seconds: float
    """Wall time, from the start to the last verdict."""

    @property
    def scores(self) -> list[float | None]:
        """Score of each case, 0…100; None where there is no verdict."""
        return [case.score for case in self.cases]

    @property
    def coverage(self) -> float:
        """Share of the cases with a verdict."""
        return sum(score is not None for score in self.scores) / len(self.cases)

    @property
    def models(self) -> list[str]:
        """Models that gave the verdicts."""
        return sorted({verdict.model for case in self.cases for verdict in case.verdicts})

    @property
    def main_fault(self) -> str:
        """The most frequent reason for missing verdicts; empty when none is missing."""
        reasons = Counter(case.missing for case in self.cases if case.missing)
        return reasons.most_common(1)[0][0] if reasons else ""
