"""The examples that models are scored on, and what a model predicts for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lorahydra.names import BERTSCORE, Score

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
    metrics: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """The score of each example by each chosen metric, 0…1, by its name."""
    totals: Mapping[str, float] = field(default_factory=dict)
    """What a metric says of all predictions together, by name."""

    @property
    def scores(self) -> dict[str, Sequence[float]]:
        """The scores of each example that may count in `combined`, by the name of the metric."""
        return {BERTSCORE: self.bertscore.f1, **self.metrics}

    @property
    def bertscore_f1(self) -> float:
        """Mean BERTScore F1."""
        return _mean(self.bertscore.f1)

    @property
    def means(self) -> dict[str, float]:
        """Means and counts over the predictions."""
        return {
            Score.BERTSCORE_PRECISION: _mean(self.bertscore.precision),
            Score.BERTSCORE_RECALL: _mean(self.bertscore.recall),
            Score.BERTSCORE_F1: self.bertscore_f1,
            Score.TRUNCATED: float(self.truncated),
            Score.LENGTH: _mean([len(text) for text in self.texts]),
            **{name: _mean(scores) for name, scores in self.metrics.items()},
            **self.totals,
        }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
