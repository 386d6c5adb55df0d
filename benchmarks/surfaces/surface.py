"""The scores of all settings of one task, from a grid of real trials (`make.py`) or from a formula.

The population is all rows of the file, validation and unseen ones alike: they were drawn from the same data by chance.
A replayed trial has a score on each of them, of which a study sees a sample. A setting between cells of the grid takes
each row's score from one of the neighbouring cells and one of the seeds, drawn with the weights of linear interpolation
over log rate and log rank. So means are interpolated, while the scores of single rows stay as scattered as real ones,
and trials remain as alike on the same rows as real trials are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Drawn:
    """A replayed trial."""

    expected: float
    """Mean score that the setting has over seeds."""
    scores: Floats
    """Of each row of the population, shape (rows,)."""
    losses: Floats
    """Validation loss at each of the points of the training at which it was measured."""
    opinion: float = 0.0
    """By how much a judge likes its answers better than their scores say, in points of the judge."""

    @property
    def true(self) -> float:
        """Mean score of this adapter over the population."""
        return float(self.scores.mean())


@dataclass(frozen=True)
class Surface:
    """A grid of trials."""

    name: str
    rates: Floats
    """Learning rates, ascending."""
    ranks: Floats
    """Ascending."""
    alphas: Floats
    """`lora_alpha` at each rank."""
    scores: Floats
    """Shape (seeds, rates, ranks, rows); NaN where the training failed."""
    losses: Floats
    """Shape (seeds, rates, ranks, points)."""

    @property
    def best(self) -> float:
        """The highest mean over seeds of a cell."""
        return float(np.nanmax(self.scores.mean(axis=(0, 3))))

    def alpha(self, rank: float) -> float:
        """The `lora_alpha` of the grid at a rank."""
        return float(np.exp2(np.interp(math.log2(rank), np.log2(self.ranks), np.log2(self.alphas))))

    def draw(self, rate: float, rank: float, draws: np.random.Generator) -> Drawn | None:
        """Replay a trial; None if it fails. Settings beyond the grid have the scores of its edge.

        Args:
            rate: Learning rate, at the `lora_alpha` of the grid.
            rank: Rank.
            draws: Draws the cell and the seed of each row.
        """
        places = [_between(np.log(self.rates), np.log(rate)), _between(np.log2(self.ranks), np.log2(rank))]
        corners = [(i, j, wi * wj) for (i, wi), (j, wj) in itertools.product(*places) if wi * wj > 0]
        weights = np.array([weight for *_, weight in corners])
        cells = np.stack([self.scores[:, i, j] for i, j, _ in corners])  # (corners, seeds, rows)
        failed = ~np.isfinite(cells[:, :, 0])
        seeds, rows = self.scores.shape[0], self.scores.shape[3]
        share = np.repeat(weights[:, None] / seeds, seeds, axis=1)
        if draws.random() < float(share[failed].sum()):
            return None
        share = np.where(failed, 0, share)
        share /= share.sum()
        means = np.where(failed, 0, cells.mean(axis=2))
        taken = draws.choice(share.size, size=rows, p=share.ravel())
        curves = np.stack([self.losses[:, i, j] for i, j, _ in corners])
        # A whole curve is of one seed.
        alive = ~failed.any(axis=0)
        seed = int(draws.choice(np.flatnonzero(alive))) if alive.any() else 0
        losses = np.average(np.nan_to_num(curves[:, seed], nan=10.0), axis=0, weights=weights)
        return Drawn(float((share * means).sum()), cells.reshape(share.size, rows)[taken, np.arange(rows)], losses)


def load(path: Path) -> Surface:
    """The grid in a file of `make.py`; of one that is not complete, the largest complete part.

    A cell that was not trained with a seed has the scores of another one there, as if they were equal.

    Raises:
        ValueError: Not even two rates are complete for one rank.
    """
    trials = [trial for trial in pq.read_table(path).to_pylist() if trial["r"]]
    cells = {(trial["seed"], trial["learning_rate"], trial["r"]): trial for trial in trials}
    seeds, rates, ranks = (sorted(set(values)) for values in zip(*cells, strict=True))

    def grid(ranks: Sequence[int]) -> tuple[list[float], Sequence[int]]:
        return [rate for rate in rates if all(any((seed, rate, r) in cells for seed in seeds) for r in ranks)], ranks

    some = [part for count in range(1, len(ranks) + 1) for part in itertools.combinations(ranks, count)]
    rates, ranks = max(map(grid, some), key=lambda grid: (len(grid[0]) > 1, math.prod(map(len, grid))))
    if len(rates) < 2:
        raise ValueError(f"{path}: fewer than two learning rates are complete")

    def cell(seed: int, rate: float, rank: int) -> dict[str, Any]:
        return next(cells[one, rate, rank] for one in (seed, *seeds) if (one, rate, rank) in cells)

    table = [[[cell(seed, rate, r) for r in ranks] for rate in rates] for seed in seeds]
    fine = next(trial for trial in trials if trial["validation"])
    rows, points = len(fine["validation"]) + len(fine["unseen"]), len(fine["loss"])

    def scores(trial: dict[str, list[float]]) -> Floats:
        return np.array([*trial["validation"], *trial["unseen"]]) if trial["validation"] else np.full(rows, np.nan)

    def losses(trial: dict[str, list[float]]) -> Floats:
        return np.array([*trial["loss"], *[np.nan] * points][:points])

    return Surface(
        path.stem,
        np.array(rates),
        np.array(ranks, dtype=np.float64),
        np.array([cell(seeds[0], rates[0], r)["lora_alpha"] for r in ranks], dtype=np.float64),
        np.array([[[scores(trial) for trial in row] for row in plane] for plane in table]),
        np.array([[[losses(trial) for trial in row] for row in plane] for plane in table]),
    )


def simulated(seed: int = 0, rows: int = 264, drift: float = 0.0) -> Surface:
    """A surface by formula, to try things without files; what it shows is no evidence.

    The mean score is a parabola over log10 of the rate. Its top is 0.80 at 4e-4 for rank 16; for each doubling of the
    rank it is at a rate lower by a factor of sqrt(2), and higher by 0.002. The score falls by 0.05 for a factor of ten
    below the top, by twice as much above; from six times the best rate on, training diverges. Rows differ in difficulty
    (standard deviation 0.12), adapters in what they make of each row (0.06, independent) and in general (0.002). The
    validation loss has its lowest value at two thirds of the best rate, and after a share `p` of the training at a rate
    lower by a factor of `p ** drift`: with a drift above 0, early losses prefer rates that are too small.
    """
    draws = np.random.default_rng(seed)
    rates, ranks = np.geomspace(2e-5, 2e-3, 10), np.array([8.0, 16.0, 32.0, 64.0])
    doublings = np.log2(ranks / 16)
    away = np.log10(rates)[:, None] - np.log10(4e-4) + np.log10(2) / 2 * doublings
    means = 0.80 + 0.002 * doublings - 0.05 * away**2 * np.where(away > 0, 2, 1)
    shape = (2, *means.shape, rows)
    scores = means[None, :, :, None] + 0.12 * draws.standard_normal(rows) + 0.06 * draws.standard_normal(shape)
    scores += 0.002 * draws.standard_normal((*shape[:3], 1))
    scores[:, away > np.log10(6)] = np.nan
    progress = np.array([0.25, 0.5, 0.75, 1.0])
    lag = away[..., None] - np.log10(2 / 3) - drift * np.log10(progress)
    losses = 1.5 - 0.6 * progress * np.exp(-3 * lag**2) + 0.1 * lag**2
    return Surface(
        "simulated", rates, ranks, 2 * ranks, scores, losses[None] + 0.01 * draws.standard_normal((2, *losses.shape))
    )


def _between(points: Floats, value: float) -> list[tuple[int, float]]:
    """The neighbours of a value among ascending points, and their weights."""
    if len(points) == 1:
        return [(0, 1.0)]
    place = float(np.interp(value, points, np.arange(len(points))))
    low = min(int(place), len(points) - 2)
    return [(low, 1 - (place - low)), (low + 1, place - low)]
