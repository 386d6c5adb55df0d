"""How sure the choice of a study's winner is: P(best), the trials that cannot be told from it, a bound on the regret.

All trials are scored on the same validation examples, so they are compared by paired bootstrap: each resample draws
examples, the same ones for all trials. Small samples are allowed for as in Student's t: deviations are widened by
`sqrt(n / (n - 1))` and divided by the root of a chi-squared draw over its degrees of freedom.

P(best) is that of the trials near the best one, from `lorahydra.evaluation.posterior`. The bound is half-way between
the quantile of that posterior, which is too near where one trial is far better than all others, and the bootstrap's,
which is too far where the trials differ by less than their noise. The bootstrap says nothing of trials with far fewer
verdicts than the best one: if one of these is near, the bound is that of the posterior alone. The set makes no
assumption about how trials are spread.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaincinv

from lorahydra.evaluation.intervals import Floats
from lorahydra.evaluation.posterior import near, posterior
from lorahydra.names import FEWEST_EXAMPLES

__all__ = ["ENOUGH", "LEVEL", "Comparison", "compare"]

LEVEL = 0.95
SAMPLES = 2000
ENOUGH = 0.8
"""Share of the best trial's examples on which a trial must be compared with it to be known as well as it."""
TIED = 1e-9
"""Means that differ by less than this are equal."""


@dataclass(frozen=True)
class Comparison:
    """Trials compared with the best one; arrays have an entry for each trial, in their order."""

    best: int
    """Position of the trial that all are compared with: the one with the highest mean."""
    differences: Floats
    """Mean difference from the best trial on the examples that both have; NaN where it cannot be compared."""
    expected: Floats
    """The same difference as it probably is in truth: few verdicts count little; NaN where it cannot be compared."""
    p_best: Floats
    """Probability of having the highest true mean; sums to 1, and is 0 for trials that are far behind."""
    in_set: NDArray[np.bool_]
    """The trials that cannot be told from the best one; the best one is in it."""
    examples: NDArray[np.intp]
    """Examples on which each is compared; with a judge, those with a verdict on both."""
    regret_bounds: Floats
    """With 95 % confidence, no trial is better than this one by more than this; NaN where it cannot be compared."""

    @property
    def regret_bound(self) -> float:
        """The bound of the best trial."""
        return float(self.regret_bounds[self.best])


def compare(
    scores: Floats,
    judge: Floats | None = None,
    *,
    best: int | None = None,
    level: float = LEVEL,
    samples: int = SAMPLES,
    seed: int = 0,
) -> Comparison | None:
    """Compare trials by their scores on the same examples.

    Args:
        scores: Scores that every example has, weighted, shape (trials, examples); higher is better. A trial that lacks
            one (NaN) cannot be compared.
        judge: Scores that are added where there are verdicts, weighted, same shape; NaN without a verdict. Trials may
            have verdicts on different numbers of examples: each is compared on those that it shares with the best one,
            if these are 5 or nearly all of its examples.
        best: Position of the best trial; by default the one with the highest mean among those with about the most
            verdicts.
        level: Confidence of the set and of the bound.
        samples: Resamples of the bootstrap.
        seed: Seeds it.

    Returns:
        None if fewer than 5 examples can be compared, which is too few to say anything, or if the best trial
        is not one of those.
    """
    scored = np.isfinite(scores.sum(axis=1))
    if not scored.any():
        return None
    if best is None:
        best = _best(scores, judge, scored)
    parts, shared = _differences(scores, judge, best)
    shared[~scored] = 0
    if shared[best] < FEWEST_EXAMPLES:
        return None
    # A verdict that is missing by chance makes nobody incomparable.
    able = shared >= min(FEWEST_EXAMPLES, ENOUGH * shared[best])
    draws = np.random.default_rng(seed)
    means = parts[able].sum(axis=1)
    errors = _deviations(parts[able], _strata(judge), samples, draws)
    errors *= np.sqrt(shared[able] / (shared[able] - 1))
    wide = errors * _student(draws.random(samples), shared[able])
    several, judged, position = scores[able], None if judge is None else judge[able], int(able[:best].sum())
    among = near(several, judged, position, draws)
    # A trial that is equally far behind on each of a few examples has no noise of its own, which is no proof.
    in_set = (means + _reach(wide, level) >= -TIED) | among
    drawn, likely = posterior(several[among], None if judged is None else judged[among], samples, draws)
    expected, p_best = means.copy(), np.zeros(len(means))
    expected[among] = likely - likely[int(among[:position].sum())]
    p_best[among] = _shares(drawn)
    known = shared[able] >= ENOUGH * shared[best]
    regrets = _regrets(means + wide, known, level)
    by_model = _regrets(drawn, np.ones(drawn.shape[1], dtype=np.bool_), level)
    regrets[among] = (regrets[among] + by_model) / 2 if known[among].all() else by_model
    told = np.zeros(len(able), dtype=np.bool_)
    told[able] = in_set
    return Comparison(
        best=best,
        differences=_spread(means, able, np.nan),
        expected=_spread(expected, able, np.nan),
        p_best=_spread(p_best, able, 0.0),
        in_set=told,
        examples=shared,
        regret_bounds=_spread(regrets, able, np.nan),
    )


def _spread(values: Floats, able: NDArray[np.bool_], other: float) -> Floats:
    """The values of the trials that can be compared, among all."""
    spread = np.full(len(able), other)
    spread[able] = values
    return spread


def _best(scores: Floats, judge: Floats | None, scored: NDArray[np.bool_]) -> int:
    means = np.where(scored, scores.mean(axis=1), -np.inf)
    if judge is None:
        return int(means.argmax())
    counts = np.where(scored, np.isfinite(judge).sum(axis=1), 0)
    means = means + np.nansum(judge, axis=1) / np.maximum(counts, 1)
    return int(np.where(counts >= ENOUGH * counts.max(), means, -np.inf).argmax())


def _differences(scores: Floats, judge: Floats | None, best: int) -> tuple[Floats, NDArray[np.intp]]:
    """What each example contributes to each mean difference from the best trial, and on how many examples it rests."""
    parts = (scores - scores[best]) / scores.shape[1]
    if judge is None:
        return parts, np.full(len(scores), scores.shape[1])
    gaps = judge - judge[best]
    shared = np.isfinite(gaps).sum(axis=1)
    return parts + np.nan_to_num(gaps) / np.maximum(shared, 1)[:, None], shared


def _strata(judge: Floats | None) -> NDArray[np.intp] | None:
    """Groups of examples that are resampled separately, so that each resample has as many verdicts as there are.

    Examples that as many trials have verdicts on are a group; groups that are too small join their neighbours.
    """
    if judge is None or np.isfinite(judge).all():
        return None
    verdicts = np.isfinite(judge).sum(axis=0)
    groups = np.zeros(len(verdicts), dtype=np.intp)
    group, size = 0, 0
    levels = np.unique(verdicts)
    for level in levels[::-1]:
        if size >= FEWEST_EXAMPLES:
            group, size = group + 1, 0
        groups[verdicts == level] = group
        size += int((verdicts == level).sum())
    if size < FEWEST_EXAMPLES and group > 0:
        groups[groups == group] = group - 1
    return groups


def _deviations(parts: Floats, strata: NDArray[np.intp] | None, samples: int, draws: np.random.Generator) -> Floats:
    """How far the resampled mean differences are from the observed ones, shape (samples, trials)."""
    count = parts.shape[1]
    weights = np.zeros((samples, count))
    for members in [np.arange(count)] if strata is None else [np.flatnonzero(strata == n) for n in np.unique(strata)]:
        drawn = draws.integers(0, len(members), (samples, len(members)))
        drawn += np.arange(samples)[:, None] * len(members)
        times = np.bincount(drawn.ravel(), minlength=samples * len(members))
        weights[:, members] = times.reshape(samples, len(members))
    deviations: Floats = (weights - 1) @ parts.T
    return deviations


def _student(uniform: Floats, counts: NDArray[np.intp]) -> Floats:
    """Factors that make normal deviations Student's, shape (samples, trials); large together for all trials."""
    factors = np.empty((len(uniform), len(counts)))
    for count in np.unique(counts):
        freedom = count - 1
        chi_squared = 2 * gammaincinv(freedom / 2, uniform)
        factors[:, counts == count] = np.sqrt(freedom / np.maximum(chi_squared, 1e-12))[:, None]
    return factors


def _reach(deviations: Floats, level: float) -> Floats:
    """How far above its mean a difference may be, all of them at once (max statistic)."""
    spread = np.sqrt((deviations**2).mean(axis=0))
    varies = spread > TIED
    if not varies.any():
        return np.zeros(len(spread))
    most = (deviations[:, varies] / spread[varies]).max(axis=1)
    reach: Floats = np.where(varies, max(0.0, float(np.quantile(most, level))), 0.0) * spread
    return reach


def _shares(drawn: Floats) -> Floats:
    """How often each trial is the best one of a draw; those that are equal share."""
    leads = drawn >= drawn.max(axis=1, keepdims=True) - TIED
    shares: Floats = (leads / leads.sum(axis=1, keepdims=True)).mean(axis=0)
    return shares


def _regrets(drawn: Floats, rivals: NDArray[np.bool_], level: float) -> Floats:
    """The quantile of how far the best of the rivals in each draw is ahead of each trial."""
    best = drawn[:, rivals].max(axis=1, keepdims=True)
    regrets: Floats = np.quantile(np.maximum(best - drawn, 0), level, axis=0)
    return regrets
