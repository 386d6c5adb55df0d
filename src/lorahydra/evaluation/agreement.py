"""How well a judge's scores agree with people's, and judges' scores with each other.

```python
agreement(people, judge, seed=0).pairwise  # Estimate(value=0.81, low=0.72, high=0.89)
```
Only the order of scores counts, so the two sides may use different scales. Intervals are percentiles of the bootstrap
over examples. In simulations with 30 and 50 examples on a scale from 1 to 5, they held in 91 to 96 % of the cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from lorahydra.evaluation.intervals import Floats

__all__ = [
    "SAMPLES",
    "Agreement",
    "Estimate",
    "agreement",
    "krippendorff_alpha",
    "order_of_pairs",
    "pair_sums",
    "quantiles",
    "resamples",
    "spearman",
]

SAMPLES = 2000
"""Resamples of the bootstrap."""
TAIL = 0.025
"""Probability beyond each end of an interval."""


@dataclass(frozen=True)
class Estimate:
    """A statistic with its 95 % interval; all are NaN where it is not defined, as for equal scores."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Agreement:
    """How alike two sides rank the same examples."""

    count: int
    """Number of examples."""
    spearman: Estimate
    """Correlation of the ranks, -1…1."""
    kendall: Estimate
    """Kendall's tau-b, -1…1."""
    pairwise: Estimate
    """Of the pairs of examples to which people give different scores, the share that the other side orders alike; a
    pair to which it gives equal scores counts as half. 0…1, and 0.5 by chance."""


def agreement(people: Sequence[float], other: Sequence[float], *, seed: int, samples: int = SAMPLES) -> Agreement:
    """Compare the scores that people and another side give to the same examples, in the same order."""
    x, y = np.asarray(people, dtype=np.float64), np.asarray(other, dtype=np.float64)
    counts = resamples(len(x), samples, seed)
    of_people, of_other = order_of_pairs(x), order_of_pairs(y)
    alike = pair_sums(of_people * of_other, counts)
    decided, separated = pair_sums(np.abs(of_people), counts), pair_sums(np.abs(of_other), counts)
    with np.errstate(divide="ignore", invalid="ignore"):
        tau = _estimate(alike / np.sqrt(decided * separated))
        pairwise = _estimate(0.5 + 0.5 * alike / decided)
    return Agreement(len(x), spearman(x, y, seed=seed, samples=samples), tau, pairwise)


def spearman(
    one: Sequence[float] | Floats, other: Sequence[float] | Floats, *, seed: int, samples: int = SAMPLES
) -> Estimate:
    """Spearman's rank correlation of two sides' scores of the same examples."""
    counts = resamples(len(one), samples, seed).astype(np.intp)
    drawn = np.stack([np.repeat(np.arange(len(one)), row) for row in counts])
    left, right = (
        rankdata(np.asarray(side, dtype=np.float64)[drawn], axis=1) - (len(one) + 1) / 2 for side in (one, other)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        return _estimate((left * right).sum(axis=1) / np.sqrt((left**2).sum(axis=1) * (right**2).sum(axis=1)))


def resamples(examples: int, samples: int, seed: int) -> Floats:
    """How often each example occurs in each resample, shape (1 + samples, examples); the first one is the data."""
    draws = np.random.default_rng([seed, examples]).integers(0, examples, (samples, examples))
    counts = np.ones((1 + samples, examples))
    for row, drawn in zip(counts[1:], draws, strict=True):
        row[:] = np.bincount(drawn, minlength=examples)
    return counts


def order_of_pairs(scores: Floats) -> Floats:
    """For each pair of examples 1, 0 or -1: whether the first has the higher, an equal or the lower score."""
    return np.sign(scores[:, None] - scores[None, :])


def pair_sums(pairs: Floats, counts: Floats) -> Floats:
    """Sum over the pairs of each resample, shape (resamples,); an example does not form a pair with itself."""
    sums: Floats = ((counts @ pairs) * counts).sum(axis=1)
    return sums


def quantiles(values: Floats) -> tuple[float, float]:
    """The ends of the 95 % interval; resamples in which a statistic is not defined do not count."""
    low, high = np.nanquantile(values, [TAIL, 1 - TAIL])
    return float(low), float(high)


def krippendorff_alpha(scores: Sequence[Sequence[float | None]]) -> float:
    """Krippendorff's alpha of several judges' scores, for differences of interval scores.

    It is 1 less the observed over the expected disagreement: 1 if the judges always agree, 0 if they agree as by
    chance. Disagreement is the mean squared difference of two scores: of the same example, and of any two examples
    (Krippendorff, "Computing Krippendorff's Alpha-Reliability", 2011, section E).

    Args:
        scores: For each judge, its score of each example; None where it gave none. An example with fewer than two
            scores does not count.

    Returns:
        At most 1; NaN if there is nothing to compare, or all scores are equal.
    """
    table = np.array([[np.nan if score is None else score for score in row] for row in scores], dtype=np.float64)
    units = [unit[np.isfinite(unit)] for unit in table.T]
    units = [unit for unit in units if len(unit) > 1]
    if not units:
        return float("nan")
    pairable = np.concatenate(units)
    # The sum of squared differences of all pairs of n numbers is 2 n² times their variance.
    observed = sum(2 * len(unit) ** 2 * unit.var() / (len(unit) - 1) for unit in units) / len(pairable)
    expected = 2 * len(pairable) * pairable.var() / (len(pairable) - 1)
    return float(1 - observed / expected) if expected > 0 else float("nan")


def _estimate(values: Floats) -> Estimate:
    """The statistic of the data, which come first, with the interval of the resamples."""
    if not np.isfinite(values[0]):
        return Estimate(float("nan"), float("nan"), float("nan"))
    return Estimate(float(values[0]), *quantiles(values[1:]))
