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

    With a judge, examples with and without a verdict are resampled apart, so that each resample has as many verdicts
    as there are.

    Args:
        scores: The scores of each example.
        config: The weights and the number of resamples.
        seed: Seeds the resampling: the same seed and number of examples draw the same resamples, so that intervals of
            trials are comparable.

    Raises:
        ValueError: A judge was on, and no example has a verdict.
    """
    bertscore, judge = _arrays(scores)
    groups = _groups(judge, len(bertscore))
    resampled = _resampled(bertscore, judge, groups, config, seed)
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Interval(_combined(bertscore, judge, config), float(low), float(high))


def gain(tuned: ExampleScores, untuned: ExampleScores, config: EvaluationConfig, seed: int) -> Gain:
    """What tuning brought, by a paired bootstrap: both sides are resampled alike, so what is common cancels.

    With a judge, the judge's part is compared on the examples that have a verdict on both sides.

    Args:
        tuned: Scores of the tuned model's answers.
        untuned: Scores of the untuned model's answers to the same prompts, in the same order.
        config: The weights and the number of resamples.
        seed: Seeds the resampling.

    Raises:
        ValueError: A judge was on, and no example has a verdict on both sides.
    """
    sides = [_arrays(tuned), _arrays(untuned)]
    if all(judge is not None for _, judge in sides):
        in_common = sum(judge for _, judge in sides if judge is not None) * 0
        sides = [(bertscore, judge + in_common) for bertscore, judge in sides if judge is not None]
    groups = _groups(sides[0][1], len(sides[0][0]))
    after, before = (_resampled(bertscore, judge, groups, config, seed) for bertscore, judge in sides)
    low, high = np.percentile(after - before, [2.5, 97.5])
    means = [_combined(bertscore, judge, config) for bertscore, judge in sides]
    return Gain(means[0] - means[1], float(low), float(high))


def _groups(judge: Floats | None, count: int) -> list[NDArray[np.intp]]:
    """Positions of the examples that are resampled together: those with a verdict, and the others."""
    if judge is None:
        return [np.arange(count)]
    missing = np.isnan(judge)
    if missing.all():
        raise ValueError("no example has a verdict")
    return [np.flatnonzero(group) for group in (~missing, missing) if group.any()]


def _resampled(
    bertscore: Floats, judge: Floats | None, groups: list[NDArray[np.intp]], config: EvaluationConfig, seed: int
) -> Floats:
    """`combined` of each resample, shape `(bootstrap_samples,)`."""
    draws = np.random.default_rng(seed)
    results = np.empty(config.bootstrap_samples)
    for sample in range(config.bootstrap_samples):
        chosen = np.concatenate([group[draws.integers(0, len(group), len(group))] for group in groups])
        results[sample] = _combined(bertscore[chosen], None if judge is None else judge[chosen], config)
    return results


def _arrays(scores: ExampleScores) -> tuple[Floats, Floats | None]:
    """The scores as arrays; a missing verdict is NaN."""
    bertscore = np.asarray(scores.bertscore_f1, dtype=np.float64)
    if scores.judge is None:
        return bertscore, None
    return bertscore, np.asarray([np.nan if s is None else s for s in scores.judge], dtype=np.float64)


def _combined(bertscore: Floats, judge: Floats | None, config: EvaluationConfig) -> float:
    return combine(float(bertscore.mean()), None if judge is None else float(np.nanmean(judge)), config)
