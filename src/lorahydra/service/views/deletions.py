"""What would be deleted, and what is being deleted."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from lorahydra.service.views.base import Documented
from lorahydra.service.views.fine_tunes import JobState

__all__ = ["DeletionPlan", "DeletionView", "GoingDataset", "GoingFineTune", "Kind"]


class Kind(StrEnum):
    """What can be deleted."""

    PROJECT = "project"
    DATASET = "dataset"
    FINE_TUNE = "fine_tune"


@dataclass(frozen=True)
class GoingFineTune(Documented):
    """A fine-tune that would be deleted."""

    id: int
    name: str
    state: JobState
    size: int
    """Size in bytes of its folder: adapters, checkpoints, predictions, log."""


@dataclass(frozen=True)
class GoingDataset(Documented):
    """A dataset that would be deleted."""

    id: int
    name: str
    rows: int
    size: int
    """Size of its file in bytes."""


@dataclass(frozen=True)
class DeletionPlan(Documented):
    """What a deletion would take with it."""

    kind: Kind
    id: int
    name: str
    fine_tunes: list[GoingFineTune]
    datasets: list[GoingDataset]
    running: list[int]
    """Fine-tunes that must be cancelled first."""
    cache_size: int
    """Size in bytes of the rows, tokens and verdicts that are cached for these datasets and are not needed any more."""
    runs: int
    """Number of runs in MLflow."""
    runs_size: int
    """Size of their artifacts in bytes."""
    registered_models: list[str]
    """Models in MLflow's registry that lose the versions made by these runs."""
    size: int
    """Bytes that become free."""
    digest: str
    """Differs if other things would go; a deletion that is given the digest then deletes nothing."""


@dataclass(frozen=True)
class DeletionView(Documented):
    """A deletion that was asked for: what it takes cannot be seen any more, and is removed by and by."""

    id: int
    kind: Kind
    number: int
    """Id of what is deleted."""
    project: int
    size: int
    """Bytes that become free."""
    requested: datetime
    ended: datetime | None
    """When nothing was left; None as long as something is."""
    fault: str | None
    """Why it cannot go on now, in one line; it is tried again."""
