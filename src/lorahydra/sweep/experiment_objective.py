"""A lorahydra experiment as the objective of a sweep: it has a run in MLflow, a folder, and a winner at the end."""

from __future__ import annotations

import dataclasses
import functools
import gc
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorahydra.config.checks import names_a_folder
from lorahydra.config.compat import launcher_log
from lorahydra.config.schema import ExperimentConfig
from lorahydra.config.search import OBJECTIVES, objectives
from lorahydra.config.showing import without_password
from lorahydra.errors import ConfigError, LorahydraError, StudyError, StudyStoreError
from lorahydra.names import Score, Stage, State
from lorahydra.sweep.cancelling import cancelled_with, ending_when_cancelled
from lorahydra.sweep.current import context
from lorahydra.sweep.hydra_tree import hide_password, sweep_folder, typed
from lorahydra.sweep.labels import value_text
from lorahydra.sweep.loss_scale import log_scale
from lorahydra.sweep.objective import Objective, unique_name
from lorahydra.sweep.running_trial import RunningTrial
from lorahydra.sweep.search_space import SearchSpace, corners
from lorahydra.sweep.settings import SweepSettings
from lorahydra.sweep.shared_stores import check_shared
from lorahydra.sweep.stages import end_stages
from lorahydra.sweep.stopping import StopRule
from lorahydra.sweep.storage import reading
from lorahydra.sweep.study_spec import (
    BASE_CONTENT,
    DATA_CONTENT,
    ROWS_CONTENT,
    begun_space,
    experiment_spec,
    kept_settings,
)
from lorahydra.sweep.study_store import COMMAND, SPEC, known_attributes, resume_command, with_command
from lorahydra.sweep.trial_queue import TrialQueue
from lorahydra.sweep.trial_record import TrialRecord
from lorahydra.sweep.workers import (
    CANCELLED,
    WorkerPool,
    is_placed,
    is_worker,
    needs_placing,
    worker_arguments,
    workers_of_study,
    workers_wanted,
)

if TYPE_CHECKING:
    from lorahydra.sweep.study_result import StudyResult
    from lorahydra.sweep.study_run import StudyRun
    from lorahydra.sweep.warm_start import DataKind

__all__ = ["ExperimentObjective"]

logger = logging.getLogger("lorahydra.sweep")

SEARCH = "lora"
"""The choice of `search` in `conf/config.yaml`."""
LARGEST_PACK = 8
"""With `training.pack=auto`."""
NOT_REPEATED = {
    *("study", "hydra.mode", "hydra.sweeper.storage", "hydra.sweeper.n_trials"),
    *("hydra/job_logging", "hydra/hydra_logging"),
}
"""Overrides that belong to a single start of a study, not to the study."""


class ExperimentObjective(Objective):
    """A lorahydra experiment.

    Raises:
        ConfigError: The experiment, or a key of the sweep, has a value that is not allowed.
    """

    tries_all = True
    counts_rejected = True

    def __init__(self, settings: SweepSettings) -> None:
        self.settings = settings
        tree = settings.config
        self._command_line = list(tree.hydra.overrides.task)
        self._fixed = self._command_line
        """Overrides that all trials share; `prepare` adds those of `hydra.sweeper.params`."""
        self.config = typed(tree)
        self.seed = self.config.seed
        self.batch = 1
        self.objectives = objectives(self.config.objective)
        self.directions = self._directions()
        if self.config.search.stop_when_sure:
            points = 100 if self.objectives == [Score.JUDGE_SCORE] else 1
            self.stop_rule = StopRule(points * self.config.search.indifference, self.seed)
        model = self.config.model.name_or_path.rstrip("/").rpartition("/")[2]
        self.study_name = settings.study_name or self.config.study or unique_name(model)
        names_a_folder("hydra.sweeper.study_name", self.study_name)
        self.folder = sweep_folder(tree, self.study_name)
        self.shipped_space = self.config.search.space
        self.first_trial = self.config.search.first_trial
        self.adds_shipped_space = _choice_of_search(self._command_line) is not None
        self.is_worker = is_worker()
        self.n_workers = workers_wanted(settings)
        self._places = needs_placing(settings)
        self._concludes = not self.is_worker or is_placed()
        """Whether this process names the winner if no other one runs a trial."""
        check_shared(settings, self.config.tracking.uri, self.n_workers)
        hide_password(tree, settings.storage)
        self._run: StudyRun  # made by `attending`
        self._content: dict[str, str] = {}
        """Digests of data and model, if this process has loaded them."""
        self._data_kind: DataKind | None = None
        self._warnings: Sequence[str] = ()
        self._varies = False
        """Whether trials may differ in model, data or judge."""
        self._left = False
        """Whether the study goes on in workers that this process does not wait for."""

    def kept_settings(self) -> list[str]:
        """Overrides that keep the settings with which a study of an older version began."""
        return kept_settings(self._begun().get(SPEC, {}), self._command_line)

    def begun_space(self) -> dict[str, str]:
        """The space of the study that is resumed, if it was begun with the same choice of `search`."""
        begun = self._begun()
        command = begun.get(COMMAND, {}).get("overrides", [])
        if (_choice_of_search(command) or SEARCH) != (_choice_of_search(self._command_line) or SEARCH):
            return {}
        return begun_space(begun.get(SPEC, {}))

    def _begun(self) -> dict[str, Any]:
        """The attributes of the study that is resumed; empty for a new one."""
        if not (self.settings.study_name or self.config.study):
            return {}
        return known_attributes(self.study_name, self.settings.storage)

    def prepare(self, space: SearchSpace) -> None:
        """Load data and models, which trials share, so that a fault in them is found before there is a study."""
        if not space.distributions and not self.settings.extends_space:
            raise ConfigError(
                "there is nothing to search: every key of the search space has a fixed value; give a sweep, for "
                "example training.learning_rate='tag(log, interval(1e-5, 1e-3))', or leave -m out for one trial"
            )
        self._fixed = [*(f"{name}={value}" for name, value in space.fixed.items()), *space.fixed_overrides]
        self.config = self._compose({}, self.folder)
        for params in corners(space.distributions):
            self._compose(params, self.folder)
        # Whole groups (`model=a,b`) have no dot in their name.
        self._varies = any(
            "." not in name or name.startswith(("model.", "data.", "judge.")) for name in space.distributions
        )
        from lorahydra.tracking import check_store

        # A worker need not check: the process that started it has reached the store.
        check_store(self.config.tracking, waits=self.is_worker)
        local = any(judge.name == "local" for judge in self.config.judge.asked.values())
        runs_here = self.n_workers == 1 and not self._places
        if not runs_here and not self._varies and not local:
            # Before there is a study; a model on this machine is loaded by the workers only.
            from lorahydra.judges import ready_session

            ready_session(self.config.judge)
        if runs_here and not self._varies:
            from lorahydra.sweep.warm_start import data_kind
            from lorahydra.trial.prepare import prepare

            prepared = prepare(self.config)
            self._warnings = prepared.splits.report.warnings
            self._content = {
                DATA_CONTENT: " ".join(split.digest[:12] for split in prepared.splits.report.splits),
                ROWS_CONTENT: prepared.rows_digest,
                BASE_CONTENT: str(prepared.base.digest),
            }
            self._data_kind = data_kind(prepared)
            self.batch = self._pack_size(prepared.base.device.type)
            # Garbage is collected after each trial, which takes 0.4 s if it looks at all that libraries have loaded.
            gc.collect()
            gc.freeze()

    def _pack_size(self, device: str) -> int:
        """How many trials are trained side by side."""
        most = -(-self.settings.n_trials // workers_of_study())
        if self.config.training.pack == "auto":
            # A sampler learns from trials that have ended: with four packs it still has results to learn from.
            most = max(1, most // 4)
        return min(self._largest_pack(device), most)

    def _largest_pack(self, device: str) -> int:
        """How many adapters may be trained side by side."""
        # Each trial would have the time of the whole pack; a checkpoint belongs to one trial; memory may be too small
        # for several models.
        several_models = self._varies or self.settings.extends_space
        if "time" in self.objectives or self.config.training.resume or several_models:
            return 1
        pack = self.config.training.pack
        return int(pack) if pack != "auto" else 1 if device == "cpu" else LARGEST_PACK

    def spec(self, space: SearchSpace) -> dict[str, str]:
        """All settings that affect a score."""
        return experiment_spec(self.config, space.describe(), self.objectives, space.distributions) | self._content

    def command(self) -> dict[str, Any] | None:
        """What `lorahydra studies resume` needs to start the study again."""
        given = (*self.settings.config.hydra.overrides.hydra, *self._command_line)
        return {
            "overrides": [without_password(o) for o in given if o.partition("=")[0].lstrip("+") not in NOT_REPEATED],
            "environment": {name: value for name, value in os.environ.items() if name.startswith("LORA_")},
            "cwd": str(Path.cwd()),
            "folder": str(self.folder.absolute()),
        }

    def begin(self, queue: TrialQueue, space: SearchSpace) -> None:
        """Queue good settings of earlier studies, if that is wanted and this process knows the data."""
        from lorahydra.sweep.warm_start import DATA_KIND, begin_warm

        study, is_grid = queue.study, isinstance(self.settings.sampler, functools.partial)
        if not self.is_worker:
            log_scale(study, space.distributions)
        if self._data_kind is not None and DATA_KIND not in study.user_attrs:
            study.set_user_attr(DATA_KIND, dataclasses.asdict(self._data_kind))
        if self.config.search.warm_start != "auto":
            return
        if is_grid or self._varies:
            reason = "the grid is tried as it is" if is_grid else "trials differ in model, data or judge"
            logger.info("search.warm_start is not used: %s", reason)
        elif self._content:
            most = queue.n_trials - bool(space.first_trial)
            begin_warm(study, self.spec(space), self._data_kind, space.distributions, most)

    @contextmanager
    def attending(self, queue: TrialQueue) -> Iterator[None]:
        """Keep the study's MLflow run open around the trials."""
        # Imported here: torch takes seconds, but a typo in a key should be reported at once.
        from lorahydra.sweep.study_run import StudyRun

        self._run = StudyRun(self.config, queue, self.folder)
        context.resume_command = command = resume_command(self.study_name, self.settings.storage)
        self._run.warnings = self._warnings
        try:
            with reading(self.settings.storage), ending_when_cancelled(queue.study):
                self._run.open()
                self.run_id = self._run.run_id
                if is_placed():
                    end_stages(queue.study, Stage.WAITING)
                yield
            context.resume_command = None
        except StudyStoreError as error:
            # It is unknown whether other processes work on the study; if so, the last of them will close the run.
            self._run.close(State.INTERRUPTED if self._concludes else None)
            raise with_command(error, command) from error
        except BaseException as error:
            if queue.others() or not self._concludes:
                self._run.close(None)
            else:
                self._run.give_up(error)
            if isinstance(error, LorahydraError):
                raise with_command(error, command) from error
            raise

    def run(self, queue: TrialQueue, run_trials: Callable[[], None]) -> None:
        """Run trials here, or in workers."""
        if self.n_workers == 1 and not self._places:
            run_trials()
            return
        shared = [o for o in self.settings.config.hydra.overrides.hydra if not o.startswith("hydra.mode=")]
        arguments = worker_arguments(self.study_name, self.settings.storage, [*shared, *self._command_line])

        def close_dead() -> None:
            self.close_dead_runs(queue.wait_for_signs())

        close_dead()
        if self._places:
            from lorahydra.sweep.placing import run_placed

            self._left = not run_placed(self.settings, queue, arguments, self.n_workers, close_dead)
            return
        os.environ[CANCELLED] = cancelled_with(queue.study)
        while queue.has_room():
            command = [sys.executable, *arguments]
            WorkerPool(command, self.n_workers, functools.partial(self._worker_died, queue, [])).run()
            close_dead()

    def _worker_died(self, queue: TrialQueue, idle: list[int], pid: int, signal: int) -> bool:
        """Close the trial of a killed worker; returns whether another worker should take its place.

        Raises:
            StudyError: Workers are killed before they have a trial.
        """
        self.close_dead_runs(queue.close_dead({pid: signal}))
        if not queue.has_room():
            return False
        if not queue.had_trial(pid):
            idle.append(pid)
        if len(idle) >= queue.max_deaths:
            raise StudyError(
                f"{len(idle)} workers of the study were killed before they had a trial (often: out of memory): lower "
                "hydra.sweeper.n_jobs"
            )
        return True

    def together(
        self, claimed: Sequence[RunningTrial], overrides: Sequence[Sequence[str]]
    ) -> AbstractContextManager[None]:
        """Let trials that were claimed together be trained side by side."""
        if len(claimed) == 1:
            return nullcontext()
        from lorahydra.sweep.trial_pack import packed

        return packed(self.settings, self._run.queue.study, claimed, overrides)

    def close_dead_runs(self, dead: Sequence[TrialRecord]) -> None:
        """Close the MLflow runs of trials whose process died."""
        if dead:
            self._run.close_children(self._run.run_id)

    def begins(self, claimed: Sequence[RunningTrial]) -> None:
        """Log which trials are run next."""
        if is_placed():
            end_stages(self._run.queue.study, Stage.WAITING)
        # The launcher's line would repeat every fixed override.
        logging.getLogger(launcher_log).setLevel(logging.WARNING)
        for trial in claimed:
            params = ", ".join(f"{name}={value_text(value)}" for name, value in trial.params.items())
            logger.info("Trial %d begins: %s", trial.number, params)

    def progressed(self) -> None:
        """Log and record the progress of the study."""
        self._run.progressed()

    def release(self) -> None:
        """Give back the memory of a trial that failed."""
        from lorahydra.modeling.memory import release_memory

        release_memory()

    def conclude(self, queue: TrialQueue) -> StudyResult | None:
        """Name the winner, unless another process still runs a trial."""
        if self._left:
            self._run.close(None)
            logger.info("It is watched with `lorahydra studies show`, and ended with `lorahydra studies cancel`")
            return None
        running = queue.others() if self._concludes else 0
        if running:
            logger.info(
                "Study %s: %d trials are still running in other processes, and the last of them names the winner",
                self.study_name,
                running,
            )
        if running or not self._concludes:
            self._run.close(None)
            return None
        from lorahydra.sweep.conclusion import conclude

        # A worker does not keep its place on a cluster while another one names the winner.
        return conclude(self._run, self._compose, self._largest_pack, wait=not self.is_worker)

    def _compose(self, params: Mapping[str, Any], folder: Path) -> ExperimentConfig:
        """The experiment with the parameters of one trial."""
        fixed = [override for override in self._fixed if override.partition("=")[0] not in params]
        overrides = [*fixed, *(f"{name}={value}" for name, value in params.items())]
        tree = self.settings.config_loader.load_sweep_config(self.settings.config, overrides)
        return typed(tree, str(folder))

    def _directions(self) -> list[str]:
        wanted = [OBJECTIVES[name] for name in self.objectives]
        if self.settings.directions not in (None, wanted):
            raise ConfigError(
                f"hydra.sweeper.direction={', '.join(self.settings.directions or [])} does not fit "
                f"objective={', '.join(self.objectives)}: leave the direction out"
            )
        return wanted


def _choice_of_search(overrides: Sequence[str]) -> str | None:
    """The search space that a command names; the last one counts."""
    chosen = [value for key, _, value in (o.partition("=") for o in overrides) if key.lstrip("+") == "search"]
    return chosen[-1] if chosen else None
