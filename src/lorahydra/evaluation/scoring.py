"""Computes `combined` with its interval from the scores of examples, and whether tuning helped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lorahydra.config.schema import EvaluationConfig
from lorahydra.evaluation.intervals import Floats, Part, interval
from lorahydra.names import FEWEST_EXAMPLES, Score, TuningEffect

__all__ = ["ExampleScores", "Gain", "Interval", "combine", "combined_interval", "gain"]


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval, which is the whole possible range if there is only one example."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Gain(Interval):
    """The tuned model's `combined` less the baseline's, on the same examples."""

    count: int
    """Number of examples behind it: with a judge, those with a verdict on both sides."""
    judged: bool = False
    """Whether a judge is part of it."""

    @property
    def means(self) -> dict[Score, float]:
        """Its numbers by the name they have behind a metric's prefix."""
        return {
            Score.GAIN: self.mean,
            Score.GAIN_LOW: self.low,
            Score.GAIN_HIGH: self.high,
            Score.GAIN_EXAMPLES: float(self.count),
        }

    @property
    def sentence(self) -> str:
        """Whether tuning helped, in one sentence without a full stop; every place that says so uses it."""
        effect = self.effect
        if effect is TuningEffect.TOO_FEW:
            examples = f"{self.count} {'judged ' if self.judged else ''}example{'s are' if self.count > 1 else ' is'}"
            return (
                f"{examples} too few to say whether tuning helped: at least {FEWEST_EXAMPLES} are needed "
                f"(combined changed by {self.mean:+.4f})"
            )
        interval = f"{self.mean:+.4f}, 95 % interval {self.low:+.4f} to {self.high:+.4f}"
        if effect is TuningEffect.UNCLEAR:
            return f"No clear difference: combined changed by {interval}"
        return f"Tuning {'helped' if effect is TuningEffect.HIGHER else 'hurt'}: combined changed by {interval}"

    @property
    def effect(self) -> TuningEffect:
        """Whether tuning helped, as a code."""
        return TuningEffect.of(self.low, self.high, self.count)


@dataclass(frozen=True)
class ExampleScores:
    """The scores of each example, in order."""

    bertscore_f1: Sequence[float]
    judge: Sequence[float | None] | None
    """0…100, None where a verdict is missing; None as a whole without a judge."""
    lowest: float = 0.0
    """The lowest BERTScore that is possible: below 0 when scores are rescaled."""


def combine(bertscore_f1: float, judge_score: float | None, config: EvaluationConfig) -> float:
    """`combined` of two means: of BERTScore, 0…1, and of the judge, 0…100; of the former alone without a judge.

    With the default weights it is `0.4 · bertscore_f1 + 0.6 · judge_score / 100`.
    """
    if judge_score is None:
        return bertscore_f1
    return config.bertscore_weight * bertscore_f1 + config.judge_weight * judge_score / 100


def combined_interval(scores: ExampleScores, config: EvaluationConfig, seed: int) -> Interval:
    """`combined` over the examples, with its interval (`lorahydra.evaluation.intervals`), whose resamples `seed` draws.

    Raises:
        ValueError: A judge was on, and no example has a verdict.
    """
    return Interval(*_estimate(*_arrays(scores), config, seed, (scores.lowest, 1.0), paired=False))


def gain(tuned: ExampleScores, baseline: ExampleScores, config: EvaluationConfig, seed: int) -> Gain:
    """The gain from tuning, from the difference on each example, so that effects common to both sides cancel.

    Both sides are predictions for the same prompts in the same order. With a judge, the judge's part is compared on the
    examples that have a verdict on both.

    Raises:
        ValueError: A judge was on, and no example has a verdict on both sides.
    """
    (after, judge_after), (before, judge_before) = _arrays(tuned), _arrays(baseline)
    judge = None if judge_after is None or judge_before is None else judge_after - judge_before
    reach = 1 - min(tuned.lowest, baseline.lowest)
    ends = _estimate(after - before, judge, config, seed, (-reach, reach), paired=True)
    return Gain(*ends, len(after) if judge is None else int(np.isfinite(judge).sum()), judge is not None)


def _estimate(
    bertscore: Floats,
    judge: Floats | None,
    config: EvaluationConfig,
    seed: int,
    limits: tuple[float, float],
    *,
    paired: bool,
) -> tuple[float, float, float]:
    """`combined`, or its differences, and the ends of its interval; `limits` are those of one BERTScore."""
    low, high = limits
    part, of_judge, judged = Part(bertscore, low, high), None, np.arange(len(bertscore))
    if judge is not None:
        judged = np.flatnonzero(np.isfinite(judge))
        if not len(judged):
            raise ValueError("no example has a verdict")
        weight, most = config.bertscore_weight, config.judge_weight
        part = Part(weight * bertscore, weight * low, weight * high)
        of_judge = Part(most * judge[judged] / 100, -most if paired else 0.0, most)
    ends = interval(part, of_judge, judged, samples=config.bootstrap_samples, seed=seed, paired=paired)
    return combine(float(bertscore.mean()), None if judge is None else float(np.nanmean(judge)), config), *ends


def _arrays(scores: ExampleScores) -> tuple[Floats, Floats | None]:
    """The scores as arrays; a missing verdict is NaN."""
    bertscore = np.asarray(scores.bertscore_f1, dtype=np.float64)
    return bertscore, None if scores.judge is None else np.array(scores.judge, dtype=np.float64)
