"""The sweep that Hydra starts with `-m`: claim trials, launch them, tell the study, until `n_trials` are finished."""

from __future__ import annotations

import functools
import logging
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import optuna
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.types import HydraContext, TaskFunction
from hydra_plugins.hydra_optuna_sweeper._impl import OptunaSweeperImpl
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from optuna.samplers import BruteForceSampler, CmaEsSampler, GridSampler
from optuna.trial import Trial

from lorahydra.config.compose import explain, without_password
from lorahydra.errors import (
    ConfigError,
    JudgeBudgetError,
    JudgeCoverageError,
    JudgeSetupError,
    OutputError,
    ServiceError,
    StudyError,
    TrialPruned,
    causes,
)
from lorahydra.names import State
from lorahydra.sweep.current import running_as
from lorahydra.sweep.objective import FunctionObjective, Objective, is_experiment
from lorahydra.sweep.optuna_warnings import quietly
from lorahydra.sweep.running_trial import RunningTrial
from lorahydra.sweep.samplers import fit_grid, make_pruner, make_sampler, say_what_is_drawn
from lorahydra.sweep.search_space import SearchSpace, read_space, size
from lorahydra.sweep.storage import check_address, reading
from lorahydra.sweep.study_store import open_study
from lorahydra.sweep.trial_queue import MOST_DEATHS, TrialQueue
from lorahydra.utils.interrupts import noticed, raise_if_interrupted

__all__ = ["StudySweeper"]

logger = logging.getLogger(__name__)

FATAL_ERRORS = (ServiceError, OutputError, JudgeSetupError, JudgeBudgetError)
"""Faults that are not the trial's: the study stops and can go on later."""


class StudySweeper(OptunaSweeperImpl):
    """Upstream's sweeper on a durable study.

    Args:
        pruner: A class of `optuna.pruners`, as a config.
        sampler: A class of `optuna.samplers`, as a config.
        max_deaths: How often a process may die with the same parameters before they count as a failed trial.
        grid_steps: Values of a continuous range for the grid sampler.
        settings: Upstream's other keys.

    Raises:
        ConfigError: A number is out of its range, or the pruner cannot be made.
    """

    def __init__(
        self, *, pruner: Any, sampler: Any, max_deaths: int = MOST_DEATHS, grid_steps: int = 5, **settings: Any
    ) -> None:
        _check({**settings, "max_deaths": max_deaths, "grid_steps": grid_steps})
        self.max_deaths = max_deaths
        self.grid_steps = grid_steps
        super().__init__(sampler=sampler, **settings)
        self.pruner = make_pruner(pruner)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Receive what Hydra composed."""
        self.sampler: Any
        self.n_trials: int
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self.objective = self._make_objective()
        self.sampler = make_sampler(self.sampler, config)
        if len(self.objective.directions) > 1 and isinstance(self.sampler, CmaEsSampler):
            raise ConfigError(
                "hydra/sweeper/sampler=cmaes searches for one objective: use multivariate_tpe, nsgaii or another one"
            )

    def _make_objective(self) -> Objective:
        if not is_experiment(self.config):
            return FunctionObjective(self)
        from lorahydra.sweep.experiment_objective import ExperimentObjective

        return ExperimentObjective(self)

    def sweep(self, arguments: list[str]) -> Any:
        """Run the study to its end, or this process's part of it."""
        if self.storage is not None:
            check_address(self.storage)  # before the slow things
        with reading(self.storage):
            return self._sweep(arguments)

    def _sweep(self, arguments: list[str]) -> Any:
        objective = self.objective
        self._process_searchspace_config()
        space = read_space(
            [*self._parse_sweeper_params_config(), *arguments, *objective.kept_settings()],
            {} if self.custom_search_space_extender and not objective.adds_shipped_space else objective.shipped_space,
            objective.first_trial,
            add_shipped=objective.adds_shipped_space,
        )
        self._fit_sampler(space)
        say_what_is_drawn(self.sampler, space.distributions)
        objective.prepare(space)
        study = open_study(self, space)
        queue = TrialQueue(study, int(self.n_trials), self.max_deaths)
        if space.first_trial and not isinstance(self.sampler, GridSampler):
            queue.enqueue_first(space.first_trial)
        with objective.attending(queue), self._resumable(queue):
            objective.run(queue, functools.partial(self._run_trials, queue, space))
            return objective.conclude(queue)

    def _run_trials(self, queue: TrialQueue, space: SearchSpace) -> None:
        """Claim and run trials until none is left to claim."""
        configure = functools.partial(self._configure, space)
        while True:
            self.objective.close_dead_runs(queue.close_dead())
            self._check_failures(queue)
            claimed, overrides = queue.claim(self.objective.batch, configure)
            if not claimed:
                dead = queue.wait_for_signs()
                self.objective.close_dead_runs(dead)
                if not dead:
                    return
                continue
            for trial in claimed:
                trial.parent_run_id = self.objective.run_id
            self.objective.begins(claimed)
            for trial, job in self._launched(claimed, overrides):
                self._settle(trial, job)
                self.objective.progressed(queue)
                raise_if_interrupted()

    def _launched(
        self, claimed: list[RunningTrial], overrides: Sequence[Sequence[str]]
    ) -> Iterator[tuple[RunningTrial, JobReturn]]:
        if isinstance(self.launcher, BasicLauncher):
            # It would run them one after another as well; this way each is told as soon as it ends.
            for trial, own in zip(claimed, overrides, strict=True):
                try:
                    with running_as(trial):
                        [job] = self.launcher.launch([own], initial_job_idx=trial.number)
                except (HydraException, OmegaConfBaseException) as error:
                    # A value that only this trial has does not compose.
                    job = JobReturn(status=JobStatus.FAILED)
                    job.return_value = explain(error)
                yield trial, job
            return
        # Jobs get consecutive numbers from the launcher, and other processes may have taken numbers in between.
        for start, stop in _runs([trial.number for trial in claimed]):
            jobs = self.launcher.launch(overrides[start:stop], initial_job_idx=claimed[start].number)
            yield from zip(claimed[start:stop], jobs, strict=True)

    def _settle(self, trial: RunningTrial, job: JobReturn) -> None:
        """Tell the study how a trial ended, where it has not done so itself."""
        found = job._return_value
        if job.status is not JobStatus.COMPLETED:
            raise_if_interrupted()  # which may be why
        if job.status is JobStatus.COMPLETED:
            try:
                trial.complete(self._values(found))
            except (TypeError, ValueError) as error:
                trial.failed(str(error), rejected=True)
        elif isinstance(found, TrialPruned | optuna.TrialPruned):
            trial.pruned()
        elif isinstance(found, FATAL_ERRORS) and not isinstance(found, JudgeCoverageError):
            raise found
        else:
            if not getattr(found, "exit_code", None):
                logger.debug("Trial %d", trial.number, exc_info=found)
            trial.failed(f"{getattr(found, 'reason', type(found).__name__)}: {found}")
            # Frames of the traceback hold what the trial held, models and batches too.
            for cause in causes(found):
                traceback.clear_frames(cause.__traceback__)
            self.objective.release()
        if trial.state is State.FAILED:
            logger.warning("Trial %d failed: %s", trial.number, trial.failure)

    def _values(self, found: Any) -> list[float]:
        """The values of the objectives, as upstream reads them."""
        count = len(self.objective.directions)
        if count == 1:
            try:
                return [float(found)]
            except (TypeError, ValueError):
                raise ValueError(f"Return value must be float-castable. Got '{found}'.") from None
        values = [float(value) for value in found]
        if len(values) != count:
            raise ValueError(f"the trial returned {len(values)} values, and there are {count} objectives")
        return values

    def _check_failures(self, queue: TrialQueue) -> None:
        failed = [record for record in queue.records() if record.state is State.FAILED]
        if not self.objective.counts_rejected:
            failed = [record for record in failed if not record.rejected]
        if len(failed) > self.max_failure_rate * queue.n_trials:
            raise StudyError(
                f"{len(failed)} of {queue.n_trials} trials of study {queue.study.study_name} failed, more than "
                f"hydra.sweeper.max_failure_rate={self.max_failure_rate:g} allows; the last one: {failed[-1].failure}"
            )

    def _configure(self, space: SearchSpace, trials: list[Trial]) -> Sequence[Sequence[str]]:
        # Upstream keeps fixed values beside each trial, where anyone can read them.
        safe = {name: without_password(f"{name}={value}").partition("=")[2] for name, value in space.fixed.items()}
        real = {f"{name}={safe[name]}": f"{name}={value}" for name, value in space.fixed.items()}
        configured = self._configure_trials(trials, space.distributions, safe, space.fixed_overrides)
        return [[real.get(override, override) for override in overrides] for overrides in configured]

    def _fit_sampler(self, space: SearchSpace) -> None:
        """Complete a grid sampler; try a small finite space setting by setting."""
        settings = size(space.distributions)
        if isinstance(self.sampler, functools.partial) and self.sampler.func is GridSampler:
            self.sampler, settings = fit_grid(self.sampler, space.distributions, self.grid_steps)
            if settings > self.n_trials:
                logger.info("The grid has %d settings: %d of them are tried", settings, self.n_trials)
        elif not self.objective.tries_all or self.custom_search_space_extender or not space.distributions:
            return
        if settings <= self.n_trials:
            if not isinstance(self.sampler, GridSampler):
                # Unlike the grid sampler it knows what other samplers have tried in this study.
                with quietly():
                    self.sampler = BruteForceSampler(seed=self.objective.seed)
            self.n_trials = int(settings)
            logger.info("The search space has %d settings: each is tried once", self.n_trials)

    @contextmanager
    def _resumable(self, queue: TrialQueue) -> Iterator[None]:
        """Give back the trials of a process that ends early."""
        try:
            with noticed():
                yield
        except BaseException:
            queue.interrupt_mine()
            raise


def _check(settings: dict[str, Any]) -> None:
    for name, low in (("n_trials", 1), ("n_jobs", 1), ("max_deaths", 1), ("grid_steps", 2)):
        if settings[name] < low:
            raise ConfigError(f"hydra.sweeper.{name}={settings[name]} is not allowed: it must be at least {low}")
    if not 0 <= settings["max_failure_rate"] <= 1:
        raise ConfigError(
            f"hydra.sweeper.max_failure_rate={settings['max_failure_rate']} is not allowed: it must be from 0 to 1"
        )


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Slices of consecutive numbers."""
    start = 0
    for index in range(1, len(numbers) + 1):
        if index == len(numbers) or numbers[index] != numbers[index - 1] + 1:
            yield start, index
            start = index
