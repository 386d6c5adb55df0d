"""Rows of a leaderboard for tests, a text that must stay text, and a moment."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from lorahydra.service.views import LeaderboardRow

HOSTILE = "<script>alert(1)</script>\" onload='x' {{ 7*7 }} </pre>"
NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)


def row(number: int, combined: float | None, rank: int | None = None, **changes: Any) -> LeaderboardRow:
    """A trial that is complete where it has a score, and pruned where it has none."""
    scored = combined is not None
    made = LeaderboardRow(
        rank=rank,
        number=number,
        trial=number + 1,
        state="complete" if scored else "pruned",
        params={"lora.r": 16, "training.learning_rate": 2e-4},
        combined=combined,
        combined_low=None if combined is None else combined - 0.05,
        combined_high=None if combined is None else combined + 0.05,
        bertscore_f1=combined,
        judge_score=None,
        loss=1.5,
        seconds=12.0,
        failure=None,
        mlflow_url=None,
    )
    return replace(made, **changes)
