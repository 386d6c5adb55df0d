"""What a sweep optimises: here a function of a program of its own, in `experiment_objective` a lorahydra experiment."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from omegaconf import DictConfig, OmegaConf

from lorahydra.config.schema import ExperimentConfig
from lorahydra.errors import StudyError
from lorahydra.names import RESULTS_FILE
from lorahydra.sweep.running_trial import RunningTrial
from lorahydra.sweep.search_space import SearchSpace
from lorahydra.sweep.study_store import unique_name
from lorahydra.sweep.trial_queue import TrialQueue
from lorahydra.sweep.trial_record import TrialRecord

if TYPE_CHECKING:
    from lorahydra.sweep.study_sweeper import StudySweeper

__all__ = ["FunctionObjective", "Objective", "is_experiment", "write_optimization_results"]

logger = logging.getLogger("lorahydra.sweep")


def is_experiment(tree: DictConfig) -> bool:
    """Whether Hydra composed a lorahydra experiment, and not the config of somebody's own program."""
    return {field.name for field in fields(ExperimentConfig)} <= {str(key) for key in tree}


class Objective(Protocol):
    """What a sweep asks of what it optimises."""

    study_name: str
    directions: list[str]
    """`minimize` or `maximize`, one per objective."""
    shipped_space: Mapping[str, str]
    first_trial: Mapping[str, Any]
    adds_shipped_space: bool
    tries_all: bool
    """Whether equal parameters give equal results, so that a small space is tried setting by setting."""
    seed: int | None
    counts_rejected: bool
    """Whether a result that cannot be used counts for `max_failure_rate`, as an error does."""
    batch: int
    """Trials that are claimed together."""
    is_worker: bool
    """One of several worker processes of one command."""

    @property
    def run_id(self) -> str | None:
        """MLflow run of the study."""

    def kept_settings(self) -> list[str]:
        """Overrides that keep a study of an older version as it was."""

    def prepare(self, space: SearchSpace) -> None:
        """Find what is wrong before there is a study."""

    def spec(self, space: SearchSpace) -> dict[str, str]:
        """What must stay the same while the study goes on."""

    def command(self) -> dict[str, Any] | None:
        """How the study was started, for going on by its name."""

    def attending(self, queue: TrialQueue) -> Any:
        """A context around all trials."""

    def run(self, queue: TrialQueue, trials: Callable[[], None]) -> None:
        """Run `trials` here, or as many as wanted of it side by side."""

    def close_dead_runs(self, dead: Sequence[TrialRecord]) -> None:
        """Close what trials of dead processes left open."""

    def begins(self, claimed: Sequence[RunningTrial]) -> None:
        """These trials are run next."""

    def progressed(self, queue: TrialQueue) -> None:
        """A trial ended."""

    def release(self) -> None:
        """Give back the memory of a trial that failed."""

    def conclude(self, queue: TrialQueue) -> Any:
        """All trials are claimed: say what was found."""


class FunctionObjective:
    """A function of somebody's own, as under upstream's sweeper."""

    shipped_space: Mapping[str, str] = {}
    first_trial: Mapping[str, Any] = {}
    adds_shipped_space = False
    tries_all = False
    counts_rejected = False
    seed: int | None = None
    is_worker = False
    run_id: str | None = None

    def __init__(self, sweeper: StudySweeper) -> None:
        self._sweeper = sweeper
        if sweeper.direction is None:
            sweeper.direction = "minimize"
        self.directions = sweeper._get_directions()
        self.batch = sweeper.n_jobs
        self.study_name = sweeper.study_name or unique_name(str(sweeper.config.hydra.job.name))

    def kept_settings(self) -> list[str]:
        """Its program's own matter."""
        return []

    def prepare(self, space: SearchSpace) -> None:
        """Nothing is known about it."""

    def spec(self, space: SearchSpace) -> dict[str, str]:
        """The space; with one that a function defines, nothing."""
        return {f"search of {name}": text for name, text in space.describe().items()}

    def command(self) -> dict[str, Any] | None:
        """Only its own program can start it."""
        return None

    @contextmanager
    def attending(self, queue: TrialQueue) -> Iterator[None]:
        """Nothing around the trials."""
        yield

    def run(self, queue: TrialQueue, trials: Callable[[], None]) -> None:
        """Here."""
        trials()

    def close_dead_runs(self, dead: Sequence[TrialRecord]) -> None:
        """Nothing is left open."""

    def begins(self, claimed: Sequence[RunningTrial]) -> None:
        """The launcher says it."""

    def progressed(self, queue: TrialQueue) -> None:
        """Upstream says nothing."""

    def release(self) -> None:
        """Nothing is known about it."""

    def conclude(self, queue: TrialQueue) -> None:
        """Upstream's summary and results file."""
        if queue.others():
            logger.info("Study %s: the last trials run in other processes", self.study_name)
            return
        records = queue.records()
        if len(self.directions) == 1 and records and all(record.rejected for record in records):
            raise StudyError(
                f"no trial of the study has a result that can be used; the last one: {records[-1].failure}"
            )
        write_optimization_results(queue, Path(self._sweeper.config.hydra.sweep.dir))


def write_optimization_results(queue: TrialQueue, folder: Path, winner: TrialRecord | None = None) -> None:
    """Write upstream's `optimization_results.yaml`; nothing where no trial was completed.

    Args:
        queue: The study.
        folder: Where to.
        winner: The best trial, where it is not the one with the best value.
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
