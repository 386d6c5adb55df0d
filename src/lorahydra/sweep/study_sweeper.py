"""The sweep that Hydra starts with `-m`: claims trials, launches them and tells the study until enough are finished."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, MutableSequence, Sequence
from enum import Enum
from typing import Any

import optuna
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from hydra.utils import instantiate
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from optuna.samplers import CmaEsSampler, GridSampler
from optuna.trial import Trial

from lorahydra.config.compat import BasicLauncher, outcome
from lorahydra.config.compose import explain
from lorahydra.config.showing import without_password
from lorahydra.errors import ConfigError, StudyError, TrialPruned, clear_frames, ends_study
from lorahydra.names import State
from lorahydra.sweep.compat import suggest
from lorahydra.sweep.current import context
from lorahydra.sweep.hydra_tree import is_experiment
from lorahydra.sweep.objective import Objective
from lorahydra.sweep.running_trial import RunningTrial
from lorahydra.sweep.samplers import fit_sampler, make_pruner, make_sampler, warn_of_random_draws
from lorahydra.sweep.search_space import SearchSpace, read_space
from lorahydra.sweep.settings import SweepSettings
from lorahydra.sweep.storage import check_address, reading
from lorahydra.sweep.study_store import open_study
from lorahydra.sweep.trial_queue import TrialQueue
from lorahydra.utils.interrupts import noticed, raise_if_interrupted

__all__ = ["StudySweeper"]

logger = logging.getLogger(__name__)


class StudySweeper:
    """A sweep whose trials are kept in a study; `keys` are those of `hydra.sweeper`, the rest is what Hydra gives.

    Raises:
        ConfigError: A key has a value that is not allowed.
    """

    def __init__(
        self, keys: Mapping[str, Any], *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self._hydra_context = hydra_context
        self._task_function = task_function
        self._params: Mapping[str, Any] = keys["params"] or {}
        self._extend_space: Callable[[DictConfig, Trial], None] | None = None
        if keys["custom_search_space"]:
            self._extend_space = instantiate({"_target_": keys["custom_search_space"], "_partial_": True})
        numbers = ("n_trials", "n_jobs", "max_failure_rate", "max_deaths", "grid_steps", "wait")
        self.settings = SweepSettings(
            config=config,
            hydra_context=hydra_context,
            sampler=make_sampler(keys["sampler"], config),
            pruner=make_pruner(keys["pruner"]),
            storage=keys["storage"],
            study_name=keys["study_name"],
            directions=_directions(keys["direction"]),
            extends_space=self._extend_space is not None,
            **{name: keys[name] for name in numbers if name in keys},
        )
        self.objective = _objective(self.settings)
        if len(self.objective.directions) > 1 and isinstance(self.settings.sampler, CmaEsSampler):
            raise ConfigError(
                "hydra/sweeper/sampler=cmaes takes one objective only: use multivariate_tpe, nsgaii or another sampler"
            )

    @functools.cached_property
    def _launcher(self) -> Launcher:
        return Plugins.instance().instantiate_launcher(
            hydra_context=self._hydra_context, task_function=self._task_function, config=self.settings.config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Run the study to its end, or this process's part of it; returns the objective's conclusion.

        Args:
            arguments: Overrides of the command line, with and without sweeps.
        """
        if self.settings.storage is not None:
            check_address(self.settings.storage)  # before the slow steps
        with reading(self.settings.storage):
            return self._sweep(arguments)

    def _sweep(self, arguments: list[str]) -> Any:
        objective = self.objective
        space = read_space(
            [*objective.kept_settings(), *(f"{name}={value}" for name, value in self._params.items()), *arguments],
            {} if self._extend_space and not objective.adds_shipped_space else objective.shipped_space,
            objective.first_trial,
            add_shipped=objective.adds_shipped_space,
            begun=objective.begun_space(),
        )
        self.settings = settings = fit_sampler(
            self.settings, space.distributions, tries_all=objective.tries_all, seed=objective.seed
        )
        warn_of_random_draws(settings.sampler, space.distributions)
        objective.prepare(space)
        study = open_study(settings, objective, space)
        queue = TrialQueue(study, settings.n_trials, settings.max_deaths, objective.stop_rule)
        if space.first_trial and not isinstance(settings.sampler, GridSampler):
            queue.enqueue_first(space.first_trial)
        objective.begin(queue, space)
        with objective.attending(queue):
            try:
                with noticed():
                    objective.run(queue, functools.partial(self._run_trials, queue, space))
                    return objective.conclude(queue)
            except BaseException:
                queue.interrupt_mine()  # so that they can be claimed again
                raise

    def _run_trials(self, queue: TrialQueue, space: SearchSpace) -> None:
        """Claim and run trials until none is left to be claimed."""
        objective = self.objective
        while True:
            objective.close_dead_runs(queue.close_dead())
            self._check_failures(queue)
            claimed, overrides = queue.claim(objective.batch, functools.partial(self._draw, space))
            if not claimed:
                dead = queue.wait_for_signs()
                objective.close_dead_runs(dead)
                if not dead:
                    return
                continue
            for trial in claimed:
                trial.parent_run_id = objective.run_id
            objective.begins(claimed)
            for trial, job in self._launched(claimed, overrides):
                self._settle(trial, job)
                objective.progressed()
                raise_if_interrupted()

    def _launched(
        self, claimed: list[RunningTrial], overrides: Sequence[Sequence[str]]
    ) -> Iterator[tuple[RunningTrial, JobReturn]]:
        context.trials = {trial.number: trial for trial in claimed}
        try:
            if isinstance(self._launcher, BasicLauncher):
                # It would run them one after another as well, but this way the study is told as soon as each ends.
                with self.objective.together(claimed, overrides):
                    for trial, words in zip(claimed, overrides, strict=True):
                        yield trial, self._launched_alone(trial, words)
                return
            # The launcher numbers jobs one after another, and other processes may have taken numbers in between.
            pairs = enumerate(zip(claimed, overrides, strict=True))
            for _, consecutive in itertools.groupby(pairs, key=lambda pair: pair[1][0].number - pair[0]):
                trials, given = zip(*(pair for _, pair in consecutive), strict=True)
                jobs = self._launcher.launch(list(given), initial_job_idx=trials[0].number)
                yield from zip(trials, jobs, strict=True)
        finally:
            context.trials = {}

    def _launched_alone(self, trial: RunningTrial, overrides: Sequence[str]) -> JobReturn:
        try:
            [job] = self._launcher.launch([overrides], initial_job_idx=trial.number)
        except (HydraException, OmegaConfBaseException) as error:
            # The configuration cannot be composed with a value that only this trial has.
            job = JobReturn(status=JobStatus.FAILED)
            job.return_value = explain(error)
        return job

    def _settle(self, trial: RunningTrial, job: JobReturn) -> None:
        """Tell the study how a trial ended, unless the trial has done so itself."""
        returned = outcome(job)
        if job.status is not JobStatus.COMPLETED:
            raise_if_interrupted()  # which may be why
        if job.status is JobStatus.COMPLETED:
            try:
                trial.complete(self._values(returned))
            except (TypeError, ValueError) as error:
                trial.failed(str(error), rejected=True)
        elif isinstance(returned, TrialPruned | optuna.TrialPruned):
            trial.pruned()
        elif ends_study(returned):
            raise returned
        else:
            if not getattr(returned, "exit_code", None):
                logger.debug("Trial %d", trial.number, exc_info=returned)
            trial.failed(f"{getattr(returned, 'reason', type(returned).__name__)}: {returned}")
            clear_frames(returned)
            self.objective.release()
        if trial.state is State.FAILED:
            logger.warning("Trial %d failed: %s", trial.number, trial.failure)

    def _values(self, returned: Any) -> list[float]:
        """The values of the objectives, as Hydra's Optuna sweeper reads them."""
        count = len(self.objective.directions)
        if count == 1:
            try:
                return [float(returned)]
            except (TypeError, ValueError):
                raise ValueError(f"Return value must be float-castable. Got '{returned}'.") from None
        values = [float(value) for value in returned]
        if len(values) != count:
            raise ValueError(f"the trial returned {len(values)} values, and there are {count} objectives")
        return values

    def _check_failures(self, queue: TrialQueue) -> None:
        failed = [record for record in queue.records() if record.state is State.FAILED]
        if not self.objective.counts_rejected:
            failed = [record for record in failed if not record.rejected]
        if len(failed) > self.settings.max_failure_rate * queue.n_trials:
            raise StudyError(
                f"{len(failed)} of {queue.n_trials} trials of study {queue.study.study_name} failed, more than "
                f"hydra.sweeper.max_failure_rate={self.settings.max_failure_rate:g} allows; the last one: "
                f"{failed[-1].failure}"
            )

    def _draw(self, space: SearchSpace, trial: Trial) -> list[str]:
        """Draw the parameters of a trial, as Hydra's Optuna sweeper does; its overrides."""
        for name, distribution in space.distributions.items():
            suggest(trial, name, distribution)
        for name, value in space.fixed.items():
            # Whoever can read the database can read this.
            trial.set_user_attr(name, without_password(f"{name}={value}").partition("=")[2])
        if self._extend_space is not None:
            self._extend_space(self.settings.config, trial)
        if overlap := sorted(trial.params.keys() & trial.user_attrs.keys()):
            raise ValueError(f"parameters are both fixed and searched: {', '.join(overlap)}")
        values = {**trial.params, **space.fixed}
        return [*(f"{name}={value}" for name, value in values.items()), *space.fixed_overrides]


def _objective(settings: SweepSettings) -> Objective:
    if not is_experiment(settings.config):
        return Objective(settings)
    from lorahydra.sweep.experiment_objective import ExperimentObjective

    return ExperimentObjective(settings)


def _directions(direction: Any) -> list[str] | None:
    """The names of `hydra.sweeper.direction`: a name, a choice of Hydra's enumeration, or a list."""
    if direction is None:
        return None
    given = direction if isinstance(direction, MutableSequence) else [direction]
    return [one.name if isinstance(one, Enum) else str(one) for one in given]
