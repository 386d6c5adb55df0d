"""What happens to predictions."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from lorahydra.config.compose import compose
from lorahydra.errors import MetricError
from lorahydra.metrics.loading import Metric
from lorahydra.trial.predict import _metric_scores

EXAMPLES: Any = SimpleNamespace(texts=["a", "b"], references=["1", "2"])


def _of_lengths(prompts: list[str], references: list[str], predictions: list[str]) -> list[float]:
    return [1 / len(prediction) for prediction in predictions]


def test_a_metric_that_fails_costs_the_trial_only_if_it_counts(caplog: pytest.LogCaptureFixture) -> None:
    prepared: Any = SimpleNamespace(
        metrics={"lengths": Metric("lengths", _of_lengths, {}), "label": Metric("label", lambda *_: [1, 0], {})}
    )
    beside = compose(["metrics=[label]"])
    with caplog.at_level(logging.WARNING):
        found = _metric_scores(beside, prepared, EXAMPLES, ["x", ""])
    assert {name: scores.examples for name, scores in found.items()} == {"label": [1.0, 0.0]}
    assert "metric lengths fails: " in caplog.text
    beside.evaluation.weights = {"lengths": 1.0}
    with pytest.raises(MetricError, match="metric lengths fails: "):
        _metric_scores(beside, prepared, EXAMPLES, ["x", ""])
