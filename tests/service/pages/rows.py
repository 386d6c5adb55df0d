"""Rows of a leaderboard for tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lorahydra.service.views import LeaderboardRow


def row(number: int, combined: float | None, rank: int | None = None, **changes: Any) -> LeaderboardRow:
    """A trial that is complete where it has a score, and pruned where it has none."""
    scored = combined is not None
    made = LeaderboardRow(
        rank=rank,
        number=number,
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
