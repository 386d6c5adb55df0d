"""A model of how the score depends on the settings, which says where the next trial of a study can gain, and how much.

It is a Gaussian process with a Matérn kernel (Rasmussen & Williams, Gaussian Processes for Machine Learning, chapters 2
and 4). The few trials of a study do not determine its length scales, spread and noise, so the model is an average over
many of these, weighted by how well each explains the scores.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from scipy.stats import qmc

from lorahydra.evaluation.intervals import Floats

__all__ = ["around", "expected_gain", "most_promising"]

MODELS = 128
"""Combinations of length scales, spread and noise that are considered."""
CANDIDATES = 128
"""Points of the space that the next trial may be at."""
NEARBY = 0.1
"""Standard deviation of settings around another one, in units of a parameter's range."""
SCALES, SPREADS, NOISES = (0.15, 1.5), (0.5, 5.0), (0.005, 0.5)
"""Length scales in units of a parameter's range; spread of the function and noise of a score in units of the scores'
standard deviation."""
ROUNDING = 1e-8
"""Smallest variance, and smallest standard deviation of scores that are not equal."""


def expected_gain(points: Floats, scores: Floats, *, words: NDArray[np.bool_], chosen: int, seed: int = 0) -> float:
    """How much better than a chosen setting the most promising setting of the space is expected to be, 0 or more.

    Args:
        points: The settings of the trials, shape (trials, parameters), each parameter from 0 to 1.
        scores: Their scores, shape (trials,); higher is better.
        words: Which parameters have no order, shape (parameters,): their values are equal or different.
        chosen: Position of the chosen setting.
        seed: Of the points and models that are considered.
    """
    draws = np.random.default_rng(seed)
    models = _models(points.shape[1], draws)
    candidates = np.concatenate([points, _spread(points, words, draws)])
    return float(_gains(points, scores, candidates, points[:0], models, words, chosen).max())


def most_promising(
    points: Floats, scores: Floats, candidates: Floats, running: Floats, *, draws: np.random.Generator
) -> int:
    """The position of the candidate for the next trial that is expected to gain most over the best trial so far.

    Args:
        points: The settings of the trials, as for `expected_gain`; all parameters have an order.
        scores: Their scores.
        candidates: The settings, shape (candidates, parameters).
        running: Settings of trials without a score yet, shape (running, parameters): little can be gained near them.
        draws: Draws the models that are considered.
    """
    models, words = _models(points.shape[1], draws), np.zeros(points.shape[1], dtype=np.bool_)
    return int(_gains(points, scores, candidates, running, models, words, int(scores.argmax())).argmax())


def around(points: Floats, count: int, draws: np.random.Generator) -> Floats:
    """Settings near given ones, shape (count, parameters)."""
    middles = points[draws.integers(0, len(points), count)]
    settings: Floats = (middles + NEARBY * draws.standard_normal(middles.shape)).clip(0, 1)
    return settings


def _gains(
    points: Floats,
    scores: Floats,
    candidates: Floats,
    running: Floats,
    models: Floats,
    words: NDArray[np.bool_],
    chosen: int,
) -> Floats:
    """The expected improvement of each candidate over the chosen setting (Jones, Schonlau & Welch, 1998).

    It is that of the true score: how much better a setting may be, times how probable that is. Trials that are running
    will make what is near them known, whatever their scores (Desautels, Krause & Burdick, 2014).
    """
    spread = float(scores.std())
    if spread < ROUNDING:
        return np.zeros(len(candidates))
    values, count = (scores - scores.mean()) / spread, len(points)
    known = np.concatenate([points, running])
    near, far = _squares(known, known, words), _squares(candidates, known, words)
    log, gains = np.empty(len(models)), np.empty((len(models), len(candidates)))
    for number, (*scales, size, noise) in enumerate(models):
        # Its mean is unknown: a constant of the same size as the function is added to it.
        among, between = (size**2 * (_kernel(squares, np.array(scales)) + 1) for squares in (near, far))
        among_noisy = among + (noise**2 + ROUNDING) * np.eye(len(known))
        factor = np.linalg.cholesky(among_noisy[:count, :count])
        told, reach = np.linalg.solve(factor, values), np.linalg.solve(factor, between[:, :count].T)
        log[number] = -np.log(np.diag(factor)).sum() - 0.5 * float(told @ told)
        own = np.linalg.solve(factor, among[:count, chosen])
        means = told @ reach - told @ own
        if len(running):
            factor = np.linalg.cholesky(among_noisy)
            reach, own = np.linalg.solve(factor, between.T), np.linalg.solve(factor, among[:, chosen])
        shared = between[:, chosen] - own @ reach
        variance = (2 * size**2 - (reach**2).sum(axis=0)) + (2 * size**2 - own @ own) - 2 * shared
        gains[number] = _improvement(means, np.sqrt(np.maximum(variance, ROUNDING)))
    weights = np.exp(log - log.max())
    expected: Floats = weights @ gains / weights.sum() * spread
    return expected


def _improvement(means: Floats, deviations: Floats) -> Floats:
    """The mean of the positive part of normal differences."""
    ratios = means / deviations
    improvement: Floats = means * ndtr(ratios) + deviations * np.exp(-(ratios**2) / 2) / np.sqrt(2 * np.pi)
    return improvement


def _models(dimensions: int, draws: np.random.Generator) -> Floats:
    """Length scales, size and noise of each model, spread evenly over their logarithms; (models, parameters + 2)."""
    shares = qmc.Sobol(dimensions + 2, scramble=True, rng=draws).random(MODELS)
    low, high = np.log([*[SCALES] * dimensions, SPREADS, NOISES]).T
    models: Floats = np.exp(low + (high - low) * shares)
    return models


def _spread(points: Floats, words: NDArray[np.bool_], draws: np.random.Generator) -> Floats:
    """Settings that are spread over the space; parameters without an order have values that were tried."""
    spread: Floats = qmc.Sobol(points.shape[1], scramble=True, rng=draws).random(CANDIDATES)
    for place in np.flatnonzero(words):
        spread[:, place] = draws.choice(points[:, place], CANDIDATES)
    return spread


def _squares(one: Floats, other: Floats, words: NDArray[np.bool_]) -> Floats:
    """The squared distances in each parameter, shape (settings, settings, parameters)."""
    gaps = one[:, None, :] - other[None, :, :]
    squares: Floats = np.where(words, gaps != 0, gaps**2)
    return squares


def _kernel(squares: Floats, scales: Floats) -> Floats:
    distance = np.sqrt(5 * (squares @ scales**-2))
    kernel: Floats = (1 + distance + distance**2 / 3) * np.exp(-distance)
    return kernel
