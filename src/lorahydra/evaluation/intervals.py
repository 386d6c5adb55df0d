"""95 % confidence intervals of means that hold even for few examples.

Each end is Student's, moved half-way to the studentised bootstrap's (Efron & Tibshirani, 1993, section 12.5) if the
latter is farther out. Student's alone is too narrow on the long side of skewed scores, the bootstrap alone is too
narrow for symmetric differences with ties, and the outer one of both is too wide for normal scores.
`benchmarks/coverage.py` shows how often the interval contains the true mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

__all__ = ["Floats", "Part", "interval"]

Floats = NDArray[np.float64]

TAIL = 0.025
"""Probability beyond each end."""
MIXED = 0.5
"""How far an end goes from Student's to the bootstrap's."""
FARTHEST = 2.0
"""How far beyond Student's end the bootstrap's end counts, in widths of Student's. Resamples of few scores, most of
which are nearly equal, have almost no error, and could put the end anywhere."""
CHUNK = 2_000_000
"""Resampled scores in memory at once."""
TIED = 1e-9
"""Scores that differ by less than this, relative to the possible range, count as equal."""


@dataclass(frozen=True)
class Part:
    """Scores of examples whose mean is a summand of the estimate."""

    values: Floats
    """Weighted, shape (examples,)."""
    low: float
    high: float
    """The lowest and the highest score that is possible."""

    def unseen(self, *, paired: bool) -> tuple[float, float]:
        """How far below and above the mean the true mean may be if all scores are equal.

        Equal scores are not certain: with n of them, a share of up to `1 - 0.025 ** (1 / n)` of all examples may be
        different. Those may have any possible score. Differences that are not 0 may be as large in the other direction,
        so that six equal ones are just significant, as in a sign test.
        """
        value = float(self.values.mean())
        if float(np.ptp(self.values)) > TIED * (self.high - self.low):
            return 0.0, 0.0
        share = 1 - TAIL ** (1 / len(self.values))
        if paired and abs(value) > TIED * (self.high - self.low):
            return share * 2 * abs(value), share * 2 * abs(value)
        return share * max(value - self.low, 0.0), share * max(self.high - value, 0.0)


def interval(
    everywhere: Part, some: Part | None, judged: NDArray[np.intp], *, samples: int, seed: int, paired: bool
) -> tuple[float, float]:
    """The 95 % interval of the sum of two means, within what is possible.

    Args:
        everywhere: Scores that every example has.
        some: Scores that only the judged examples have, in the order of `judged`; None without a judge.
        judged: Positions of these examples among all; all of them without a judge.
        samples: Resamples of the bootstrap.
        seed: Seeds it: the same seed and number of examples draw the same resamples, so that intervals compare.
        paired: Whether the scores are differences between two sides.

    Returns:
        Low and high end; the whole possible range if a part has fewer than two examples.
    """
    parts = [everywhere] if some is None else [everywhere, some]
    low, high = sum(part.low for part in parts), sum(part.high for part in parts)
    if min(len(part.values) for part in parts) < 2:
        return low, high
    shared, extra = everywhere.values[judged], 0.0 if some is None else some.values
    both = len(judged) / len(everywhere.values) * shared + extra
    sample = _Sample(both, shared, np.delete(everywhere.values, judged))
    mean, error, freedom = sample.estimate()
    # Rounding puts the mean of perfect scores a little beyond 1.
    low, high = min(low, mean), max(high, mean)
    below, above = (float(sum(side)) for side in zip(*(part.unseen(paired=paired) for part in parts), strict=True))
    if error > TIED * (high - low):
        student = float(stdtrit(freedom, 1 - TAIL))
        left, right = sample.studentised(samples, seed)
        # A bootstrap's quantile on the right of the mean says how far the true mean may be on its left.
        below += (student + MIXED * min(max(right - student, 0), FARTHEST * student)) * error
        above += (student + MIXED * min(max(-left - student, 0), FARTHEST * student)) * error
    return max(low, mean - below), min(high, mean + above)


@dataclass(frozen=True)
class _Sample:
    """Examples in two groups that are resampled separately, so that each resample has the same number of verdicts."""

    both: Floats
    """The contribution of each judged example to the mean over these, shape (m,)."""
    judged: Floats
    """Their scores that every example has, shape (m,)."""
    others: Floats
    """The same of the examples that are not judged, shape (n - m,)."""

    def estimate(self) -> tuple[float, float, float]:
        """The sum of the means, its standard error and that error's degrees of freedom (Welch, 1947)."""
        means, errors = self._estimates(self.both[None], self.judged[None], self.others[None])
        m, n = len(self.both), len(self.both) + len(self.others)
        shared = float(self.both.var(ddof=1)) / m
        alone = float(errors[0]) ** 2 - shared
        spread = shared**2 / (m - 1) + alone**2 / (n - 1)
        return float(means[0]), float(errors[0]), (shared + alone) ** 2 / spread if spread else m - 1

    def studentised(self, samples: int, seed: int) -> tuple[float, float]:
        """The outer quantiles of (mean - true mean) / error, by resampling; infinite where resamples have no error."""
        draws = np.random.default_rng(seed)
        mean = self.estimate()[0]
        drawn: list[Floats] = []
        rows = max(1, CHUNK // (len(self.both) + len(self.others)))
        for start in range(0, samples, rows):
            count = min(rows, samples - start)
            judged = draws.integers(0, len(self.both), (count, len(self.both)))
            others = draws.integers(0, max(len(self.others), 1), (count, len(self.others)))
            means, errors = self._estimates(self.both[judged], self.judged[judged], self.others[others])
            gone = means - mean
            gone[np.abs(gone) < TIED * np.abs(self.both).max(initial=0)] = 0
            with np.errstate(divide="ignore", invalid="ignore"):
                drawn.append(np.where(gone == 0, 0, gone / errors))
        quantiles = np.concatenate(drawn)
        return (
            float(np.quantile(quantiles, TAIL, method="lower")),
            float(np.quantile(quantiles, 1 - TAIL, method="higher")),
        )

    def _estimates(self, both: Floats, judged: Floats, others: Floats) -> tuple[Floats, Floats]:
        """Means and standard errors of resamples, shape (resamples,), of their scores, shape (resamples, group)."""
        m, rest = both.shape[1], others.shape[1]
        n = m + rest
        variance = both.var(axis=1, ddof=1) / m
        if rest:
            everywhere = np.concatenate([judged, others], axis=1)
            variance = variance + rest / n**2 * everywhere.var(axis=1, ddof=1)
        return both.mean(axis=1) + others.sum(axis=1) / n, np.sqrt(variance)
