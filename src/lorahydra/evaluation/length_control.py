"""The judge's score without what goes with the length of the answers.

Judges tend to prefer long answers. As in the length-controlled AlpacaEval (Dubois et al., 2024, arXiv 2404.04475), the
score is regressed on how much longer an answer is than another one, here than the reference, and the prediction for
equal length counts. Scores of an answer to example i by model m, on the judge's scale, are taken as

    score(m, i) = mean(m) + slope · x(m, i),    x = tanh((length - reference's length) / σ)

with one slope for all models and σ the standard deviation of the differences in length. The slope is shrunk towards 0
as by `RIDGE` further answers on which length makes no difference, because there may be only a few verdicts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lorahydra.names import FEWEST_EXAMPLES

__all__ = ["length_controlled"]

RIDGE = 5.0


def length_controlled(
    scores: Sequence[Sequence[float | None]], lengths: Sequence[Sequence[int]], reference_lengths: Sequence[int]
) -> list[float] | None:
    """Each model's mean score if its answers were as long as the references.

    Args:
        scores: The judge's scores, 0…100, of each model's answers to the same examples; None without a verdict.
        lengths: Characters of each answer, in the same form.
        reference_lengths: Characters of each example's reference.

    Returns:
        0…100 for each model; None if a model has fewer than five verdicts.
    """
    values = [np.array(row, dtype=np.float64) for row in scores]
    judged = [np.isfinite(row) for row in values]
    if min(map(np.count_nonzero, judged)) < FEWEST_EXAMPLES:
        return None
    values = [row[where] for row, where in zip(values, judged, strict=True)]
    longer = [
        (np.array(row, dtype=np.float64) - np.array(reference_lengths))[where]
        for row, where in zip(lengths, judged, strict=True)
    ]
    spread = float(np.concatenate(longer).std())
    # Without any spread there is no slope.
    x = [np.tanh(row / spread) if spread else np.zeros_like(row) for row in longer]
    of_x = sum(float(((row - row.mean()) ** 2).sum()) for row in x)
    of_both = sum(float(((row - row.mean()) * (y - y.mean())).sum()) for row, y in zip(x, values, strict=True))
    slope = of_both / (of_x + RIDGE)
    return [float(np.clip(y.mean() - slope * row.mean(), 0.0, 100.0)) for row, y in zip(x, values, strict=True)]
