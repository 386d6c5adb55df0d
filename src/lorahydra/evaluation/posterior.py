"""What the scores say about the true means of trials, if trials near the best one are spread normally.

The best of many noisy means is partly lucky. So the means have a prior: those of trials near the best one are normal
around an unknown centre, with an unknown spread (a hierarchical model; Gelman et al., Bayesian Data Analysis, chapter
5). A score is the sum of its trial's mean, of what its example does to all trials, and of noise, whose variance is the
same for all trials.

With a judge, a mean has two parts, each with a prior of its own: the scores that every example has together with what
follows from them for the verdicts, and the rest of the verdicts. What follows is given by the slope of the noise of
verdicts over that of scores. A few verdicts say little about the rest, so that it is shrunk most. Least squares use all
verdicts, also if trials were judged on different examples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorahydra.evaluation.intervals import Floats

__all__ = ["near", "posterior"]

SPREADS = np.geomspace(1e-4, 1, 60)
"""Standard deviations of the true means that are considered."""
OF_MEANS = 2 * np.log(SPREADS) - 2 * np.log1p((SPREADS / 0.02) ** 2)
"""Logarithm of their prior: uniform in the variance up to a usual spread, in units of `combined`. Here and in the next,
one factor is that of the grid, which is logarithmic."""
OF_REST = np.log(SPREADS) - np.log1p((SPREADS / 0.01) ** 2)
"""The same for what the judge alone sees: half-Cauchy (Gelman, 2006), as verdicts often cannot tell it from noise."""
FAR = 2.5
"""Standard errors beyond which a trial says nothing about the spread of trials near the best one."""
NEAR_SAMPLES = 1000
"""Draws that say how far a trial may be above its verdicts."""
ROUNDING = 1e-12
"""Smallest variance, so that trials with equal scores do no harm."""


def near(scores: Floats, judge: Floats | None, best: int, draws: np.random.Generator) -> NDArray[np.bool_]:
    """Which trials are near the best one, as far as the noise tells; arguments as for `posterior`."""
    estimates = _estimates(scores, judge)
    means, variance = estimates.scored, np.full(len(scores), 2 * estimates.variance)
    if judge is not None:
        # By the noise of a few verdicts alone, every trial would be near.
        drawn, rest = _normal(estimates.rest, estimates.errors, estimates.prior_of_rest, NEAR_SAMPLES, draws)
        means = means + rest
        variance += (drawn - drawn[:, [best]]).var(axis=0)
    reaches: NDArray[np.bool_] = means - means[best] + FAR * np.sqrt(np.maximum(variance, ROUNDING)) >= 0
    return reaches


def posterior(scores: Floats, judge: Floats | None, samples: int, draws: np.random.Generator) -> tuple[Floats, Floats]:
    """Draws of the true means of trials, up to what is common to them, and their expected values.

    Args:
        scores: Scores that every example has, weighted, shape (trials, examples).
        judge: Scores that are added where there are verdicts, weighted, same shape; NaN elsewhere.
        samples: Number of draws.
        draws: Random numbers.

    Returns:
        The draws, shape (samples, trials), and the expected values, shape (trials,).
    """
    estimates = _estimates(scores, judge)
    errors = estimates.variance * np.eye(len(scores))
    drawn, expected = _normal(estimates.scored, errors, OF_MEANS, samples, draws)
    if judge is None:
        return drawn, expected
    rest, expected_rest = _normal(estimates.rest, estimates.errors, estimates.prior_of_rest, samples, draws)
    return drawn + rest, expected + expected_rest


def _normal(
    means: Floats, errors: Floats, prior: Floats, samples: int, draws: np.random.Generator
) -> tuple[Floats, Floats]:
    """The same of one part of the true means.

    Args:
        means: Their estimates.
        errors: The covariance of these.
        prior: Logarithm of the prior of `SPREADS`.
        samples: Number of draws.
        draws: Random numbers.
    """
    trials = len(means)
    # Without the mean of all trials, in the directions in which errors are independent.
    contrasts = np.linalg.qr(np.column_stack([np.ones(trials), np.eye(trials)[:, 1:]]))[0][:, 1:]
    values, vectors = np.linalg.eigh(contrasts.T @ errors @ contrasts)
    noise, basis = np.maximum(values, ROUNDING), contrasts @ vectors
    gaps = means @ basis
    totals = noise + SPREADS[:, None] ** 2
    log = prior - 0.5 * (np.log(totals) + gaps**2 / totals).sum(axis=1)
    weights = np.exp(log - log.max())
    weights /= weights.sum()
    gains = 1 - noise / totals
    chosen = draws.choice(len(SPREADS), samples, p=weights)
    deviations = np.sqrt(gains * noise)[chosen] * draws.standard_normal((samples, trials - 1))
    return (gains[chosen] * gaps + deviations) @ basis.T, (weights @ gains * gaps) @ basis.T


@dataclass(frozen=True)
class _Estimates:
    """Means of the trials in two parts whose errors are independent, each up to what is common to all trials."""

    scored: Floats
    """The scores, and what follows from them for the verdicts."""
    variance: float
    """Of their errors."""
    rest: Floats
    """Of the verdicts."""
    errors: Floats
    """The covariance of its errors."""

    @property
    def prior_of_rest(self) -> Floats:
        """Where only verdicts count, they are no rest."""
        return OF_REST if self.variance > ROUNDING else OF_MEANS


def _estimates(scores: Floats, judge: Floats | None) -> _Estimates:
    trials, examples = scores.shape
    means = scores.mean(axis=1)
    own = scores - scores.mean(axis=0) - (means - means.mean())[:, None]
    variance = float((own**2).sum()) / max((trials - 1) * (examples - 1), 1) / examples
    if judge is None or trials == 1:
        return _Estimates(means, variance, np.zeros(trials), np.zeros((trials, trials)))
    several = np.isfinite(judge).sum(axis=0) > 1
    given = np.isfinite(judge[:, several])
    # The normal equations, without the examples.
    inverse = np.linalg.pinv(np.diag(given.sum(axis=1)) - (given / given.sum(axis=0)) @ given.T, hermitian=True)
    of_judge, noise = _least_squares(judge[:, several], given, inverse)
    of_scores, alongside = _least_squares(scores[:, several], given, inverse)
    freedom = max(int(given.sum()) - given.shape[1] - trials + 1, 1)
    slope = _slope(alongside, noise, freedom)
    rest = float(((noise - slope * alongside) ** 2).sum()) / freedom
    return _Estimates((1 + slope) * means, (1 + slope) ** 2 * variance, of_judge - slope * of_scores, rest * inverse)


def _least_squares(values: Floats, given: NDArray[np.bool_], inverse: Floats) -> tuple[Floats, Floats]:
    """Means of the trials, and what they and the examples do not explain, 0 where there is no verdict."""

    def centred(values: Floats) -> Floats:
        filled = np.where(given, values, 0)
        return np.where(given, filled - filled.sum(axis=0) / given.sum(axis=0), 0)

    means: Floats = inverse @ centred(values).sum(axis=1)
    return means, centred(values - means[:, None])


def _slope(of: Floats, noise: Floats, freedom: int) -> float:
    """The slope of the noise over that of the scores, less what chance may make of it (James & Stein, 1961)."""
    power = float((of**2).sum())
    if power < ROUNDING:
        return 0.0
    slope = float((of * noise).sum()) / power
    chance = float(((noise - slope * of) ** 2).sum()) / freedom / power
    return slope * max(0.0, 1 - chance / slope**2) if slope else 0.0
