"""What the scores say about the true differences of trials, if trials near the best one are spread normally.

The best of many noisy means is partly lucky. So the differences have a prior: true means of trials near the best one
are normal around an unknown centre, with an unknown spread (a hierarchical model; Gelman et al., Bayesian Data
Analysis, chapter 5). A score is the sum of its trial's mean, of what its example does to all trials, and of noise,
whose variance is the same for all trials. Least squares use all verdicts, also if trials were judged on different
examples.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lorahydra.evaluation.intervals import Floats

__all__ = ["near", "posterior"]

SPREADS = np.geomspace(1e-4, 1, 60)
"""Standard deviations of the true means that are considered."""
USUAL_SPREAD = 0.02
"""Spreads that are much larger than this become improbable; in units of `combined`."""
FAR = 2.5
"""Standard errors beyond which a trial says nothing about the spread of trials near the best one."""
ROUNDING = 1e-12
"""Smallest variance, so that trials with equal scores do no harm."""


def near(scores: Floats, judge: Floats | None, best: int) -> NDArray[np.bool_]:
    """Which trials are near the best one, as far as the noise tells; arguments as for `posterior`."""
    means, errors = _means(scores, judge)
    variance = np.diag(errors) + errors[best, best] - 2 * errors[best]
    reaches: NDArray[np.bool_] = means - means[best] + FAR * np.sqrt(np.maximum(variance, ROUNDING)) >= 0
    return reaches


def posterior(scores: Floats, judge: Floats | None, best: int, samples: int, draws: np.random.Generator) -> Floats:
    """Draws of the true differences of trials from the best one, shape (samples, trials).

    Args:
        scores: Scores that every example has, weighted, shape (trials, examples).
        judge: Scores that are added where there are verdicts, weighted, same shape; NaN elsewhere.
        best: Position of the best trial.
        samples: Number of draws.
        draws: Random numbers.
    """
    others = np.arange(len(scores)) != best
    if not others.any():
        return np.zeros((samples, 1))
    means, errors = _means(scores, judge)
    gaps = (means - means[best])[others]
    noise = errors - errors[best] - errors[:, [best]] + errors[best, best]
    noise = noise[np.ix_(others, others)]
    # The difference of two independent means: each has its own part, and all have that of the best one.
    shape = np.eye(len(gaps)) + 1
    noise += ROUNDING * shape
    drawn = []
    for spread, times in zip(SPREADS, draws.multinomial(samples, _spreads(gaps, noise, shape)), strict=True):
        if times:
            prior = spread**2 * shape
            gain = np.linalg.solve(noise + prior, prior).T
            # Rounding may make a variance that is nearly 0 negative, which "eigh" takes for 0.
            left = prior - gain @ prior
            drawn.append(draws.multivariate_normal(gain @ gaps, left, times, check_valid="ignore", method="eigh"))
    differences: Floats = np.insert(np.concatenate(drawn), best, 0.0, axis=1)
    return differences


def _spreads(gaps: Floats, noise: Floats, shape: Floats) -> Floats:
    """The probability of each of `SPREADS`."""
    # Uniform in the variance up to the usual spread; one factor is that of the grid, which is logarithmic.
    log = 2 * np.log(SPREADS) - 2 * np.log1p((SPREADS / USUAL_SPREAD) ** 2)
    for place, spread in enumerate(SPREADS):
        factor = np.linalg.cholesky(noise + spread**2 * shape)
        log[place] -= np.log(np.diag(factor)).sum() + 0.5 * float((np.linalg.solve(factor, gaps) ** 2).sum())
    weights: Floats = np.exp(log - log.max()) / np.exp(log - log.max()).sum()
    return weights


def _means(scores: Floats, judge: Floats | None) -> tuple[Floats, Floats]:
    """Means of the trials by least squares, up to what is common to them, and the covariance of their errors."""
    trials, examples = scores.shape
    means = scores.mean(axis=1)
    own = scores - scores.mean(axis=0) - (means - means.mean())[:, None]
    variance = float((own**2).sum()) / max((trials - 1) * (examples - 1), 1)
    if judge is None:
        return means, variance / examples * np.eye(trials)
    several = np.isfinite(judge).sum(axis=0) > 1
    verdicts, scored = judge[:, several], scores[:, several]
    given = np.isfinite(verdicts).astype(np.float64)
    # The normal equations, without the examples.
    inverse = np.linalg.pinv(np.diag(given.sum(axis=1)) - (given / given.sum(axis=0)) @ given.T, hermitian=True)
    of_judge = inverse @ np.nansum(verdicts - np.nanmean(verdicts, axis=0), axis=1)
    left = verdicts - of_judge[:, None]
    left = left - np.nanmean(left, axis=0)
    freedom = max(int(given.sum()) - given.shape[1] - trials + 1, 1)
    spread, together = float(np.nansum(left**2)) / freedom, float(np.nansum(left * scored)) / freedom
    return means + of_judge, (variance + 2 * together) / examples * np.eye(trials) + spread * inverse
