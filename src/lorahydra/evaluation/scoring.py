"""From scores of examples to one number with an interval: `combined`, and whether tuning helped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorahydra.config.schema import EvaluationConfig

__all__ = ["ExampleScores", "Gain", "Interval", "combine", "combined_interval", "gain"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Gain(Interval):
    """Tuned minus untuned `combined`, on the same examples."""

    @property
    def is_clear(self) -> bool:
        """Whether the whole interval is on one side of 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class ExampleScores:
    """The scores of each example, in order."""

    bertscore_f1: Sequence[float]
    judge: Sequence[float | None] | None
    """0…100, None where a verdict is missing; None as a whole without a judge."""


def combine(bertscore_f1: float, judge_score: float | None, config: EvaluationConfig) -> float:
    """`combined` of two means.

    Args:
        bertscore_f1: 0…1.
        judge_score: 0…100, or None without a judge.
        config: The weights.

    Returns:
        `0.4 · bertscore_f1 + 0.6 · judge_score / 100` with the default weights, `bertscore_f1` without a judge.
    """
    if judge_score is None:
        return bertscore_f1
    return config.bertscore_weight * bertscore_f1 + config.judge_weight * judge_score / 100


def combined_interval(scores: ExampleScores, config: EvaluationConfig, seed: int) -> Interval:
    """`combined` over the examples, with a percentile bootstrap interval (Efron, 1979).

    Args:
        scores: The scores of each example.
        config: The weights and the number of resamples.
        seed: Seeds the resampling: the same seed and number of examples draw the same resamples, so that intervals of
            trials are comparable.
    """
    low, high = np.percentile(_resampled(scores, config, seed), [2.5, 97.5])
    return Interval(_mean(scores, config), float(low), float(high))


def gain(tuned: ExampleScores, untuned: ExampleScores, config: EvaluationConfig, seed: int) -> Gain:
    """What tuning brought, by a paired bootstrap: both sides are resampled alike, so what is common cancels.

    Args:
        tuned: Scores of the tuned model's answers.
        untuned: Scores of the untuned model's answers to the same prompts, in the same order.
        config: The weights and the number of resamples.
        seed: Seeds the resampling.
    """
    difference = _resampled(tuned, config, seed) - _resampled(untuned, config, seed)
    low, high = np.percentile(difference, [2.5, 97.5])
    return Gain(_mean(tuned, config) - _mean(untuned, config), float(low), float(high))


def _mean(scores: ExampleScores, config: EvaluationConfig) -> float:
    return _combine_chosen(*_arrays(scores), config)


def _resampled(scores: ExampleScores, config: EvaluationConfig, seed: int) -> Floats:
    """`combined` of each resample, shape `(bootstrap_samples,)`."""
    draws = np.random.default_rng(seed)
    bertscore, judge = _arrays(scores)
    results = np.empty(config.bootstrap_samples)
    for sample in range(config.bootstrap_samples):
        chosen = draws.integers(0, len(bertscore), len(bertscore))
        results[sample] = _combine_chosen(bertscore[chosen], None if judge is None else judge[chosen], config)
    return results


def _arrays(scores: ExampleScores) -> tuple[Floats, Floats | None]:
    """The scores as arrays; a missing verdict is NaN."""
    bertscore = np.asarray(scores.bertscore_f1, dtype=np.float64)
    if scores.judge is None:
        return bertscore, None
    return bertscore, np.asarray([np.nan if s is None else s for s in scores.judge], dtype=np.float64)


def _combine_chosen(bertscore: Floats, judge: Floats | None, config: EvaluationConfig) -> float:
    judged = None if judge is None or np.isnan(judge).all() else float(np.nanmean(judge))
    return combine(float(bertscore.mean()), judged, config)
