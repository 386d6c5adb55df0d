"""Computes `combined` with its interval from the scores of examples, and whether tuning helped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lorahydra.config.schema import EvaluationConfig
from lorahydra.evaluation.intervals import Floats, Part, interval
from lorahydra.names import BERTSCORE, FEWEST_EXAMPLES, Score, TuningEffect

__all__ = ["ExampleScores", "Gain", "Interval", "combine", "combined_interval", "gain", "metric_interval", "weighted"]


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
    shots: int = 0
    """Number of examples in the untuned model's prompt."""

    @property
    def means(self) -> dict[str, float]:
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
            if self.shots:
                return (
                    f"{examples} too few to say whether LoRA beats {self.shots}-shot prompting: at least "
                    f"{FEWEST_EXAMPLES} are needed (combined differs by {self.mean:+.4f})"
                )
            return (
                f"{examples} too few to say whether tuning helped: at least {FEWEST_EXAMPLES} are needed "
                f"(combined changed by {self.mean:+.4f})"
            )
        if self.shots:
            return self._over_prompting(effect)
        interval = f"{self.mean:+.4f}, 95 % interval {self.low:+.4f} to {self.high:+.4f}"
        if effect is TuningEffect.UNCLEAR:
            return f"No clear difference: combined changed by {interval}"
        return f"Tuning {'helped' if effect is TuningEffect.HIGHER else 'hurt'}: combined changed by {interval}"

    def _over_prompting(self, effect: TuningEffect) -> str:
        prompting = f"{self.shots}-shot prompting"
        if effect is TuningEffect.LOWER:
            ends = f"95 % interval {-self.high:+.4f} to {-self.low:+.4f}"
            return f"{prompting} beats LoRA: its combined is higher by {-self.mean:.4f}, {ends}"
        ends = f"95 % interval {self.low:+.4f} to {self.high:+.4f}"
        if effect is TuningEffect.HIGHER:
            return f"LoRA beats {prompting}: its combined is higher by {self.mean:.4f}, {ends}"
        return f"No clear difference between LoRA and {prompting}: combined differs by {self.mean:+.4f}, {ends}"

    @property
    def effect(self) -> TuningEffect:
        """Whether tuning helped, as a code."""
        return TuningEffect.of(self.low, self.high, self.count)


@dataclass(frozen=True)
class ExampleScores:
    """The scores of each example, in order."""

    metrics: Mapping[str, Sequence[float]]
    """By the name of the metric, 0…1; BERTScore's is its F1."""
    judge: Sequence[float | None] | None
    """0…100, None where a verdict is missing; None as a whole without a judge."""
    lowest: float = 0.0
    """The lowest BERTScore that is possible: below 0 when scores are rescaled."""


def combine(metrics: Mapping[str, float], judge_score: float | None, config: EvaluationConfig) -> float:
    """`combined` of means: of metrics, 0…1, and of the judge, 0…100; of the former alone without a judge.

    With the default weights it is `0.4 · bertscore_f1 + 0.6 · judge_score / 100`.
    """
    weights, of_judge = config.weights_with(judge=judge_score is not None)
    mean = sum(weight * metrics[name] for name, weight in weights.items())
    return mean if judge_score is None else mean + of_judge * judge_score / 100


def weighted(metrics: Mapping[str, Sequence[float]], config: EvaluationConfig, *, judge: bool) -> Floats:
    """What the metrics contribute to `combined` on each example; `judge` says whether a judge contributes, too."""
    weights, _ = config.weights_with(judge=judge)
    contributions: Floats = np.zeros(len(metrics[BERTSCORE]))
    for name, weight in weights.items():
        contributions += weight * np.asarray(metrics[name], np.float64)
    return contributions


def combined_interval(scores: ExampleScores, config: EvaluationConfig, seed: int) -> Interval:
    """`combined` over the examples, with its interval (`lorahydra.evaluation.intervals`), whose resamples `seed` draws.

    Raises:
        ValueError: A judge was on, and no example has a verdict.
    """
    return Interval(*_estimate(*_arrays(scores, config), config, seed, _limits(scores, config), paired=False))


def metric_interval(scores: Sequence[float], config: EvaluationConfig, seed: int) -> Interval:
    """The mean of a metric over examples, 0…1, with its interval."""
    values = np.asarray(scores, np.float64)
    ends = interval(
        Part(values, 0.0, 1.0), None, np.arange(len(values)), samples=config.bootstrap_samples, seed=seed, paired=False
    )
    return Interval(float(values.mean()), *ends)


def gain(tuned: ExampleScores, baseline: ExampleScores, config: EvaluationConfig, seed: int, *, shots: int = 0) -> Gain:
    """The gain from tuning, from the difference on each example, so that effects common to both sides cancel.

    Both sides are predictions for the same prompts in the same order. With a judge, the judge's part is compared on the
    examples that have a verdict on both. `shots` is the number of examples in the untuned model's prompt.

    Raises:
        ValueError: A judge was on, and no example has a verdict on both sides.
    """
    (after, judge_after), (before, judge_before) = _arrays(tuned, config), _arrays(baseline, config)
    judge = None if judge_after is None or judge_before is None else judge_after - judge_before
    (low, high), (low_before, _) = _limits(tuned, config), _limits(baseline, config)
    reach = high - min(low, low_before)
    ends = _estimate(after - before, judge, config, seed, (-reach, reach), paired=True)
    return Gain(*ends, len(after) if judge is None else int(np.isfinite(judge).sum()), judge is not None, shots)


def _estimate(
    metrics: Floats,
    judge: Floats | None,
    config: EvaluationConfig,
    seed: int,
    limits: tuple[float, float],
    *,
    paired: bool,
) -> tuple[float, float, float]:
    """`combined`, or its differences, and the ends of its interval.

    Args:
        metrics: What the metrics contribute on each example.
        judge: Verdicts, or their differences, NaN where there is none; None without a judge.
        config: The weights.
        seed: Draws the resamples.
        limits: The lowest and the highest contribution that is possible.
        paired: Whether these are differences.
    """
    part, of_judge, judged, mean = Part(metrics, *limits), None, np.arange(len(metrics)), float(metrics.mean())
    if judge is not None:
        judged = np.flatnonzero(np.isfinite(judge))
        if not len(judged):
            raise ValueError("no example has a verdict")
        _, most = config.weights_with(judge=True)
        of_judge = Part(most * judge[judged] / 100, -most if paired else 0.0, most)
        mean += float(of_judge.values.mean())
    return mean, *interval(part, of_judge, judged, samples=config.bootstrap_samples, seed=seed, paired=paired)


def _arrays(scores: ExampleScores, config: EvaluationConfig) -> tuple[Floats, Floats | None]:
    """The contributions of the metrics, and the verdicts with NaN where one is missing."""
    judge = None if scores.judge is None else np.array(scores.judge, dtype=np.float64)
    return weighted(scores.metrics, config, judge=judge is not None), judge


def _limits(scores: ExampleScores, config: EvaluationConfig) -> tuple[float, float]:
    """The lowest and the highest contribution of the metrics that is possible on an example."""
    weights, _ = config.weights_with(judge=scores.judge is not None)
    return weights.get(BERTSCORE, 0.0) * scores.lowest, sum(weights.values())
