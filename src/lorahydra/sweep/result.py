"""What a study found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorahydra.finishing import TrialScores
from lorahydra.sweep.records import TrialRecord

__all__ = ["StudyResult"]


@dataclass(frozen=True)
class StudyResult:
    """A finished study; with several objectives the winner is the best of the Pareto front by the first one."""

    study: str
    """Name of the study."""
    folder: Path
    """Its output folder."""
    best: TrialRecord
    """The winner."""
    trials: list[TrialRecord]
    """All trials, best first."""
    adapter: Path
    """Folder of the winner's adapter, in PEFT's format."""
    run_id: str | None
    """The study's MLflow run; the winner's is `best.run_id`."""
    test: TrialScores | None = None
    """The winner and the untuned model on the test split; None where there is none, or it was scored earlier."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What the store keeps of the result."""

    @property
    def best_params(self) -> Mapping[str, Any]:
        """What the winner was trained with, of what was searched."""
        return self.best.params

    @property
    def best_score(self) -> float:
        """The winner's first objective on the validation split."""
        return self.best.values[0] if self.best.values else float("nan")
