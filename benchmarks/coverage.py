"""How often the 95 % interval contains the true mean, and how often "helped" or "hurt" is said if nothing changed.

python benchmarks/coverage.py --samples 1000

Scores of known distributions are drawn again and again: BERTScores near a normal distribution, skewed ones (many right
answers, few bad ones), and scores on the coarse scale of a judge, with many of them equal. `score` is the interval of
one model's mean; `gain` that of the difference between two models on the same examples. With a judge, five examples or
all of them are judged. `claims` is the share of samples in which one of two equally good models is called better.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lorahydra.config.schema import EvaluationConfig
from lorahydra.evaluation.scoring import ExampleScores, combined_interval, gain
from lorahydra.names import BERTSCORE, TuningEffect

Floats = NDArray[np.float64]
SIZES = (1, 2, 3, 5, 8, 12, 20, 50, 200)
LEVELS = np.arange(0, 101, 20, dtype=float)
"""A judge with one criterion, in points."""
CLAIMS = (TuningEffect.HIGHER, TuningEffect.LOWER)
SHARES = (0.05, 0.05, 0.1, 0.2, 0.35, 0.25)
SAME = 0.5
"""Share of answers that tuning does not change: differences of exactly 0."""


@dataclass(frozen=True)
class Shape:
    """A population of examples."""

    name: str
    scores: Callable[[np.random.Generator, int], Floats]
    """BERTScores, shape (examples,)."""
    judged: int | None = 0
    """Judged examples; 0 without a judge, None for all."""
    same: float = 0.0

    def draw(self, random: np.random.Generator, count: int) -> ExampleScores:
        """Scores of `count` examples."""
        bertscore = self.scores(random, count)
        if self.judged == 0:
            return ExampleScores({BERTSCORE: bertscore.tolist()}, None)
        verdicts = random.choice(LEVELS, count, p=SHARES)
        judged = count if self.judged is None else min(self.judged, count)
        return ExampleScores({BERTSCORE: bertscore.tolist()}, [*verdicts[:judged].tolist(), *[None] * (count - judged)])


def near_normal(random: np.random.Generator, count: int) -> Floats:
    """BERTScores of open questions."""
    return random.normal(0.75, 0.08, count).clip(0, 1)


def skewed(random: np.random.Generator, count: int) -> Floats:
    """Mostly right, some far off."""
    return random.beta(4, 1, count)


def coarse(random: np.random.Generator, count: int) -> Floats:
    """Six values, three in five of them one of two."""
    return random.choice(LEVELS / 100, count, p=SHARES)


SHAPES = (
    Shape("near normal", near_normal),
    Shape("skewed", skewed),
    Shape("coarse", coarse),
    Shape("half unchanged", near_normal, same=SAME),
    Shape("judge on 5", near_normal, judged=5),
    Shape("judge on all", near_normal, judged=None),
    Shape("judge, skewed", skewed, judged=None),
)


@dataclass(frozen=True)
class Found:
    """Shares of samples."""

    score: float
    gain: float
    claims: float


def coverage(shape: Shape, count: int, samples: int, config: EvaluationConfig, seed: int = 0) -> Found:
    """Draw `samples` times `count` examples of a shape for two models that are equally good.

    Args:
        shape: The population.
        count: Examples.
        samples: How often.
        config: The weights and the resamples of each interval.
        seed: Draws them.
    """
    random = np.random.default_rng([seed, count])
    truth = float(np.mean(combined_of(shape, random, config)))
    held = np.zeros(3)
    for sample in range(samples):
        tuned, untuned = shape.draw(random, count), shape.draw(random, count)
        if shape.same:
            kept = random.random(count) < shape.same
            mixed = np.where(kept, untuned.metrics[BERTSCORE], tuned.metrics[BERTSCORE])
            tuned = replace(tuned, metrics={BERTSCORE: mixed.tolist()})
        score = combined_interval(tuned, config, sample)
        change = gain(tuned, untuned, config, sample)
        held += (score.low <= truth <= score.high, change.low <= 0 <= change.high, change.effect in CLAIMS)
    return Found(*(held / samples).tolist())


def combined_of(shape: Shape, random: np.random.Generator, config: EvaluationConfig) -> Floats:
    """`combined` of very many examples."""
    many = replace(shape, judged=None if shape.judged else shape.judged).draw(random, 1_000_000)
    if many.judge is None:
        return np.asarray(many.metrics[BERTSCORE])
    verdicts = np.asarray(many.judge, dtype=float)
    return config.bertscore_weight * np.asarray(many.metrics[BERTSCORE]) + config.judge_weight * verdicts / 100


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--bootstrap", type=int, default=1000, help="resamples of each interval")
    options = parser.parse_args()
    config = EvaluationConfig(bootstrap_samples=options.bootstrap)
    print(f"| {'in %':24}|" + "".join(f" n = {count:<5}|" for count in SIZES))
    print(f"|{'-' * 25}|" + "----------|" * len(SIZES))
    for shape in SHAPES:
        shares = [coverage(shape, count, options.samples, config) for count in SIZES]
        for what in ("score", "gain", "claims"):
            cells = "".join(f" {100 * getattr(one, what):<9.1f}|" for one in shares)
            print(f"| {f'{shape.name}: {what}':24}|{cells}", flush=True)


if __name__ == "__main__":
    main()
