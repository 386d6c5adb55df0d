"""How much of the score of an adapter is due to the seed of its training.

An adapter's score on an example is the sum of what the example does to all adapters, of its setting's mean, of what its
seed adds everywhere, and of noise of its own. Examples show the noise, and not what the seed adds everywhere; only
adapters of the same setting and other seeds show that (a random-effects analysis of variance; Searle, Casella &
McCulloch, Variance Components, chapter 3).
"""

from __future__ import annotations

import numpy as np
from scipy.special import ndtri, stdtrit

from lorahydra.evaluation.intervals import Floats

__all__ = ["allowing_for_few", "seed_variance", "with_unseen_noise"]

LEVEL = 0.975
"""Quantile of a 95 % interval with two ends."""


def seed_variance(scores: Floats, judge: Floats | None = None) -> float:
    """The variance of the true means of adapters that differ only in their seeds, 0 or more.

    Args:
        scores: Scores that every example has, weighted, shape (settings, seeds, examples); two seeds or more.
        judge: Scores that are added where there are verdicts, weighted, same shape; NaN without a verdict. Only
            examples with a verdict on each adapter of a setting count.
    """
    means, noise = scores.mean(axis=2), np.array([_noise(rows) for rows in scores])
    if judge is not None:
        for setting, verdicts in enumerate(judge):
            both = np.isfinite(verdicts).all(axis=0)
            if both.sum() > 1:
                means[setting] += verdicts[:, both].mean(axis=1)
                noise[setting] += _noise(verdicts[:, both])
    return max(0.0, float(means.var(axis=1, ddof=1).mean() - noise.mean()))


def allowing_for_few(variance: float, settings: int, seeds: int) -> float:
    """A variance that was estimated from the adapters of so many settings and seeds, widened as in Student's t."""
    freedom = settings * (seeds - 1)
    return variance * float(stdtrit(freedom, LEVEL) / ndtri(LEVEL)) ** 2


def _noise(scores: Floats) -> float:
    """The variance of an adapter's mean that is due to noise of its own; `scores` has shape (seeds, examples)."""
    seeds, examples = scores.shape
    left = scores - scores.mean(axis=0) - scores.mean(axis=1, keepdims=True) + scores.mean()
    return float((left**2).sum() / ((seeds - 1) * max(examples - 1, 1)) / examples)


def with_unseen_noise(scores: Floats, variance: float) -> Floats:
    """Scores with the same means that vary over the examples as if these showed another variance of each mean as well.

    So methods that take the noise of a mean from the examples, such as `lorahydra.evaluation.choosing.compare`, allow
    for it. What is added to different rows is uncorrelated.

    Args:
        scores: Shape (settings, examples); more examples than settings.
        variance: Of the mean of each row.
    """
    settings, examples = scores.shape
    waves = np.pi * (np.arange(examples) + 0.5) * (np.arange(settings)[:, None] + 1) / examples
    noisy: Floats = scores + np.sqrt(2 * variance * examples) * np.cos(waves)
    return noisy
