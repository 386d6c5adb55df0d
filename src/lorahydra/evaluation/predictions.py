"""The examples that models are scored on, and what a model predicts for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorahydra.names import Score

if TYPE_CHECKING:
    from lorahydra.metrics.bertscore import BertScores  # imports torch

__all__ = ["EvaluationSet", "Predictions"]


@dataclass(frozen=True)
class EvaluationSet:
    """The examples of a split, in order."""

    prompts: Sequence[Sequence[int]]
    """Token ids of each prompt, as the model gets it."""
    texts: Sequence[str]
    """Each prompt for people to read."""
    references: Sequence[str]
    """The reference answer of each example."""
    digest: str
    """Digest of the content and of how it became prompts."""


@dataclass(frozen=True)
class Predictions:
    """What a model generated for every prompt of a set, with the scores that need no judge; in the set's order."""

    texts: list[str]
    bertscore: BertScores
    truncated: int
    """How many of them were truncated at `max_new_tokens`."""
    generate_seconds: float
    bertscore_seconds: float

    @property
    def bertscore_f1(self) -> float:
        """Mean BERTScore F1."""
        return _mean(self.bertscore.f1)

    @property
    def means(self) -> dict[Score, float]:
        """Means and counts over the predictions."""
        return {
            Score.BERTSCORE_PRECISION: _mean(self.bertscore.precision),
            Score.BERTSCORE_RECALL: _mean(self.bertscore.recall),
            Score.BERTSCORE_F1: self.bertscore_f1,
            Score.TRUNCATED: float(self.truncated),
            Score.LENGTH: _mean([len(text) for text in self.texts]),
        }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
