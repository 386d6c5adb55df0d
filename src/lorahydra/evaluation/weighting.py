"""Which weight of the judge in `combined` ranks labelled answers most like people do, and whether the labels can tell.

For each weight of a grid, the share of the pairs of answers that `combined` orders as people do is computed. The best
weight on the labels is too good to be true, so it is cross-validated: for each answer, the weight is chosen on the
pairs of all the others, and counts for the pairs with this answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorahydra.evaluation.agreement import Estimate, order_of_pairs, pair_sums, quantiles, resamples
from lorahydra.evaluation.intervals import Floats

__all__ = ["Suggestion", "suggest_weight"]

STEPS = 20
"""The grid goes from 0 to 1 in so many steps."""
TIED = 1e-9
SAMPLES = 500
"""Resamples; each takes memory for every weight and example."""


@dataclass(frozen=True)
class Suggestion:
    """The weight of the judge that fits labels best."""

    weight: float
    """The weight with the highest agreement on all labels; among equal ones, the nearest to the present weight."""
    low: float
    high: float
    """Between these is the best weight of 95 % of the resamples."""
    present: float
    """The weight that is compared with."""
    agreement: float
    """Pairwise agreement of `combined` with people, with the present weight, 0…1."""
    gain: Estimate
    """How much higher it is, in cross-validation, with a weight that is chosen on the other answers."""

    @property
    def is_clear(self) -> bool:
        """Whether the labels show that another weight is better."""
        return self.gain.low > 0


def suggest_weight(
    people: Sequence[float],
    judge: Sequence[float],
    bertscore: Sequence[float],
    *,
    present: float,
    seed: int,
    samples: int = SAMPLES,
) -> Suggestion:
    """Find the judge's weight in `combined` that orders the answers most like people do.

    Args:
        people: People's scores, on any scale.
        judge: The judge's, 0…100.
        bertscore: BERTScore F1, 0…1.
        present: The judge's weight in the configuration; BERTScore's is the rest.
        seed: Draws the resamples.
        samples: How many there are.
    """
    # The present weight comes first, so that it wins every tie; then come those that are near it.
    grid = np.array([present, *sorted(np.linspace(0, 1, STEPS + 1), key=lambda weight: abs(weight - present))])
    counts = resamples(len(people), samples, seed)
    scores = [weight * np.asarray(judge) / 100 + (1 - weight) * np.asarray(bertscore) for weight in grid]
    order = order_of_pairs(np.asarray(people, dtype=np.float64))
    decided = pair_sums(np.abs(order), counts)
    # Shape (weights, resamples, examples): the sum over the pairs with each example.
    with_each = np.stack([counts * (counts @ (order * order_of_pairs(combined))) for combined in scores])
    totals = with_each.sum(axis=2)
    best = grid[_first_best(totals)]
    left = totals[:, :, None] - 2 * with_each
    chosen = np.take_along_axis(with_each, _first_best(left)[None], axis=0)[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        gains = 0.5 * (chosen - with_each[0]).sum(axis=1) / decided
    return Suggestion(
        float(best[0]),
        *quantiles(best[1:]),
        present,
        float(0.5 + 0.5 * totals[0, 0] / decided[0]),
        Estimate(float(gains[0]), *quantiles(gains[1:])),
    )


def _first_best(sums: Floats) -> NDArray[np.intp]:
    """Position of the highest sum along the first axis; of sums that are equal but for rounding, the first."""
    position: NDArray[np.intp] = np.argmax(sums >= sums.max(axis=0) - TIED, axis=0)
    return position
