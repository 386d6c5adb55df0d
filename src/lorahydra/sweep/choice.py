"""What a study says about the choice of its winner: why this trial, and how sure that is (docs/choosing.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from lorahydra.sweep.trial_record import RaceScore, TrialRecord

__all__ = ["Choice", "with_choice"]

SHOWN = 8
"""Trials of the set that a sentence names."""


@dataclass(frozen=True)
class Choice:
    """The choice of a winner among the trials that could be compared; trials are named by their numbers."""

    winner: int
    best: int
    """The trial with the highest mean; another one wins if it is as good and has a smaller adapter."""
    reason: str
    """Why the winner was chosen, as a sentence without a full stop."""
    p_best: Mapping[int, float]
    """Probability of each trial that no other one is better, 0 to 1."""
    set: tuple[int, ...]
    """The trials that cannot be told from the best one, with 95 % confidence, the most probable first."""
    regret_bound: float
    """With 95 % confidence, no trial is better than the winner by more than this, in the objective's unit."""
    examples: int
    """Examples on which the best trial was scored; with a judge, those with a verdict."""
    final: Mapping[int, RaceScore] = field(default_factory=dict)
    """Scores of the trials that were left at the end of a race."""
    seeds: int = 0
    """Other seeds with which each trial in `p_best` was trained. If there are any, the choice is about settings, each
    with its mean over all seeds."""

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any] | None) -> Choice | None:
        """The choice, from what `facts` returned; None for a study that made none."""
        if not facts:
            return None
        p_best = {int(number): float(value) for number, value in facts["p_best"].items()}
        final = {int(number): RaceScore(**scores) for number, scores in facts.get("final", {}).items()}
        return cls(**{**facts, "p_best": p_best, "set": tuple(facts["set"]), "final": final})

    @property
    def facts(self) -> dict[str, Any]:
        """The choice as plain JSON."""
        p_best = {str(number): round(value, 4) for number, value in self.p_best.items()}
        final = {str(number): asdict(scores) for number, scores in self.final.items()}
        return asdict(self) | {"p_best": p_best, "final": final}

    @property
    def why(self) -> str:
        """The reason as a code: `highest_score` or `smaller_adapter`."""
        return "highest_score" if self.winner == self.best else "smaller_adapter"

    @property
    def sentences(self) -> str:
        """Who won and why, and how sure that is, for people."""
        others = [str(number) for number in self.set if number != self.winner]
        named = ", ".join(others[:SHOWN]) + (f" and {len(others) - SHOWN} more" if len(others) > SHOWN else "")
        alike = f"trial{'s' if len(others) > 1 else ''} {named} may be as good" if others else "no other may be as good"
        scored = f"{self.examples} examples" + (f" and {self.seeds + 1} seeds" if self.seeds else "")
        return (
            f"Winner: trial {self.winner}, {self.reason}. P(best) is {self.p_best[self.winner]:.2f} on {scored}; "
            f"{alike}, and none is better by more than {self.regret_bound:.4f} (95 % confidence)."
        )


def with_choice(records: Sequence[TrialRecord], choice: Choice | None, winner: int | None) -> list[TrialRecord]:
    """The trials with what the choice says about each, and with the mark of the winner."""
    told = [replace(record, is_winner=True) if record.number == winner else record for record in records]
    if choice is None:
        return told
    return [
        replace(
            record,
            p_best=choice.p_best[record.number],
            in_set=record.number in choice.set,
            final=choice.final.get(record.number),
        )
        if record.number in choice.p_best
        else record
        for record in told
    ]
