"""Compares the winners of two studies on the same test rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lorahydra.config.schema import ExperimentConfig
from lorahydra.evaluation.scoring import ExampleScores, Gain, gain
from lorahydra.names import BERTSCORE, PredictionColumn, score_column

__all__ = ["Row", "has_same_rows", "paired_gain"]

Row = Mapping[str, Any]
"""A row of a predictions table, by `PredictionColumn`."""


def has_same_rows(first: Sequence[Row], second: Sequence[Row]) -> bool:
    """Whether both tables are about the same requests and references, in the same order."""
    texts = [
        [(row.get(PredictionColumn.PROMPT), row.get(PredictionColumn.REFERENCE)) for row in t] for t in (first, second)
    ]
    return texts[0] == texts[1]


def paired_gain(first: Sequence[Row], second: Sequence[Row], config: ExperimentConfig) -> Gain | None:
    """`combined` of the second table's predictions less that of the first one's, by a paired bootstrap.

    Args:
        first: Predictions for some rows.
        second: Other predictions for the same rows.
        config: How both were scored.

    Returns:
        None if no row has a verdict on both.
    """
    try:
        return gain(_scores(second, config), _scores(first, config), config.evaluation, config.seed)
    except ValueError:
        return None


def _scores(table: Sequence[Row], config: ExperimentConfig) -> ExampleScores:
    is_judged = config.judge.name != "none"
    weights, _ = config.evaluation.weights_with(judge=is_judged)
    scores = {name: _column(table, name) for name in {BERTSCORE: 1.0} | weights}
    # Rescaled scores may be negative; which one is the lowest possible is not in the table.
    return ExampleScores(
        metrics=scores,
        judge=[row.get(PredictionColumn.JUDGE_SCORE) for row in table] if is_judged else None,
        lowest=min(0.0, *scores[BERTSCORE]),
    )


def _column(table: Sequence[Row], metric: str) -> list[float]:
    return [float(row[score_column(metric)]) for row in table]
