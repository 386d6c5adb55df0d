"""Each name has one home, and the pages follow it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorahydra.config.search import OBJECTIVES
from lorahydra.names import EVAL, SCORES, Metric, PredictionColumn, Score, Tag, scored

MLFLOW_PAGE = Path(__file__).resolve().parents[1] / "docs" / "mlflow.md"


@pytest.mark.parametrize("names", [Metric, PredictionColumn, Tag, [scored(EVAL, score) for score in Score]])
def test_the_page_on_mlflow_lists_every_name(names: list[str]) -> None:
    page = MLFLOW_PAGE.read_text("utf-8")
    assert [str(name) for name in names if name not in page] == []


def test_a_score_is_written_as_its_entry_says() -> None:
    assert SCORES[Score.JUDGE_SCORE].text(78.5) == "78.50"
    assert SCORES[Score.COMBINED].text(0.1, "+") == "+0.1000"
    assert OBJECTIVES["loss"] == "minimize"
    assert OBJECTIVES["judge_score"] == "maximize"
