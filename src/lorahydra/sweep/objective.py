"""What a sweep optimises: any function that Hydra calls; `experiment_objective` has that of a lorahydra experiment."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lorahydra.errors import StudyError
from lorahydra.names import RESULTS_FILE
from lorahydra.sweep.running_trial import RunningTrial
from lorahydra.sweep.search_space import SearchSpace
from lorahydra.sweep.settings import SweepSettings
from lorahydra.sweep.stopping import StopRule
from lorahydra.sweep.trial_queue import TrialQueue
from lorahydra.sweep.trial_record import TrialRecord

__all__ = ["Objective", "unique_name", "write_optimization_results"]

logger = logging.getLogger("lorahydra.sweep")


def unique_name(*parts: str) -> str:
    """A name for a new study: its subject, its start, and a suffix that distinguishes two of the same second."""
    words = "-".join(part for part in parts if part)
    kept = "".join(char if char.isalnum() or char in ".-" else "-" for char in words).strip("-.")[:60].lower()
    return f"{kept or 'study'}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


class Objective:
    """The function of any program, treated as Hydra's Optuna sweeper treats it."""

    shipped_space: Mapping[str, str] = {}
    """The sweeps that are searched if the user gives none."""
    first_trial: Mapping[str, Any] = {}
    """Parameters of trial 0 for `shipped_space`."""
    adds_shipped_space = False
    """Whether `shipped_space` is searched in addition to the user's sweeps."""
    tries_all = False
    """Whether equal parameters give equal results, so that each setting of a small space is tried once."""
    counts_rejected = False
    """Whether a result that cannot be used counts towards `max_failure_rate`, as an error does."""
    seed: int | None = None
    stop_rule: StopRule | None = None
    """When the study ends before its last trial."""
    is_worker = False
    """Whether this process is one of several workers of one command."""
    run_id: str | None = None
    """MLflow run of the study."""

    def __init__(self, settings: SweepSettings) -> None:
        self.settings = settings
        self.directions = settings.directions or ["minimize"]
        self.batch = settings.n_jobs
        """Trials that are claimed together."""
        self.study_name = settings.study_name or unique_name(str(settings.config.hydra.job.name))

    def kept_settings(self) -> list[str]:
        """Overrides that keep the settings with which a study of an older version began."""
        return []

    def begun_space(self) -> dict[str, str]:
        """The search space with which a study of an older version began, as text by parameter."""
        return {}

    def prepare(self, space: SearchSpace) -> None:
        """Find faults before the study is made."""

    def spec(self, space: SearchSpace) -> dict[str, str]:
        """The settings that must stay the same throughout the study."""
        return {f"search of {name}": text for name, text in space.describe().items()}

    def command(self) -> dict[str, Any] | None:
        """How the study was started; None if `lorahydra studies resume` cannot start it again."""
        return None

    def begin(self, queue: TrialQueue, space: SearchSpace) -> None:
        """Queue further trials of a new study after the first one."""

    def attending(self, queue: TrialQueue) -> AbstractContextManager[None]:
        """A context around all trials."""
        return nullcontext()

    def run(self, queue: TrialQueue, run_trials: Callable[[], None]) -> None:
        """Call `run_trials` here, or let workers do it."""
        run_trials()

    def close_dead_runs(self, dead: Sequence[TrialRecord]) -> None:
        """Close what trials of dead processes left open."""

    def together(
        self, claimed: Sequence[RunningTrial], overrides: Sequence[Sequence[str]]
    ) -> AbstractContextManager[None]:
        """A context around trials that were claimed together."""
        return nullcontext()

    def begins(self, claimed: Sequence[RunningTrial]) -> None:
        """Log which trials are run next; Hydra's launcher does so as well."""

    def progressed(self) -> None:
        """Log and record the progress of the study after the end of a trial."""

    def release(self) -> None:
        """Free the memory of a trial that failed."""

    def conclude(self, queue: TrialQueue) -> Any:
        """Write the results of the study, when no trial is left to be claimed."""
        if queue.others():
            logger.info("Study %s: the last trials are running in other processes", self.study_name)
            return
        records = queue.records()
        if len(self.directions) == 1 and records and all(record.rejected for record in records):
            raise StudyError(
                f"no trial of the study has a result that can be used; the last one: {records[-1].failure}"
            )
        write_optimization_results(queue, Path(self.settings.config.hydra.sweep.dir))


def write_optimization_results(queue: TrialQueue, folder: Path, winner: TrialRecord | None = None) -> None:
    """Write `optimization_results.yaml`, as Hydra's Optuna sweeper does, unless no trial was completed.

    Args:
        queue: The trials of the study.
        folder: Where the file goes.
        winner: The best trial, if it may differ from the one with the best value.
    """
    study = queue.study
    if len(study.directions) > 1:
        front = [{"params": trial.params, "values": trial.values} for trial in study.best_trials]
        results: dict[str, Any] = {"name": "optuna", "solutions": front}
        logger.info("Number of Pareto solutions: %d", len(front))
    else:
        try:
            best = study.best_trial
        except ValueError:
            return
        params, value = best.params, best.value
        if winner is not None and winner.values is not None:
            params, value = dict(winner.params), winner.values[0]
        results = {"name": "optuna", "best_params": params, "best_value": value}
        logger.info("Best parameters: %s", params)
        logger.info("Best value: %s", value)
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.create(results), folder / RESULTS_FILE)
