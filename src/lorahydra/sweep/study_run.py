"""The run of a study in MLflow, which all of its processes record to."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from lorahydra.config.compose import to_yaml
from lorahydra.config.schema import ExperimentConfig
from lorahydra.config.search import objectives
from lorahydra.errors import LorahydraError, TrackingError
from lorahydra.names import CONFIG_FILE, OVERRIDES_FILE, Kind, Metric, State, Tag
from lorahydra.sweep.choice import Choice
from lorahydra.sweep.compat import storage_of
from lorahydra.sweep.mlflow_notes import study_note
from lorahydra.sweep.ranking import best_so_far, directions_of
from lorahydra.sweep.repeats import repeat_states
from lorahydra.sweep.sampler_state import sampler_name
from lorahydra.sweep.storage import study_lock
from lorahydra.sweep.study_store import COMMAND, STUDY_ID
from lorahydra.sweep.trial_queue import TrialQueue
from lorahydra.sweep.trial_record import TrialRecord
from lorahydra.sweep.warm_start import WARM
from lorahydra.tracking import (
    TrackedRun,
    close_run,
    find_run,
    join_run,
    patiently,
    set_tags,
    start_run,
    sync,
    unfinished_children,
)
from lorahydra.trial.record import params_of, record_environment, without_secrets
from lorahydra.trial.score import TrialScores

__all__ = ["StudyRun"]

logger = logging.getLogger("lorahydra.sweep")

RUN_ID = "lorahydra.run_id"


class StudyRun:
    """The parent run of a study's trials, as this process sees it."""

    def __init__(self, config: ExperimentConfig, queue: TrialQueue, folder: Path) -> None:
        self.config = config
        self.folder = folder
        self.warnings: Sequence[str] = ()
        """Warnings about the data, if this process has read them."""
        self.queue = queue
        self.objectives = objectives(config.objective)
        self.directions = directions_of(queue.study)
        self._run: TrackedRun | None = None
        self._begun = 0
        """Number of trials when this process began."""

    @property
    def run_id(self) -> str:
        """MLflow's id of the open run."""
        return self.run.run_id

    @property
    def run(self) -> TrackedRun:
        """The open run."""
        assert self._run is not None
        return self._run

    def open(self) -> None:
        """Make the run or join it, and close the runs that dead processes left open."""
        study = self.queue.study
        self._begun = len(self.queue.records())
        earlier = study.user_attrs.get(RUN_ID)
        if earlier is not None:
            self.queue.close_dead()
            # Before joining: an end that a dead process could not send would close the run again.
            self.close_children(earlier)
        tracking, study_id = self.config.tracking, study.user_attrs[STUDY_ID]
        with study_lock(storage_of(study), study.study_name):
            # The process that made the run may have died before it could keep its id.
            earlier = study.user_attrs.get(RUN_ID) or find_run(tracking, {Tag.STUDY_ID: study_id})
            if earlier is None:
                self._run = start_run(
                    dataclasses.replace(tracking, system_metrics=False),
                    output_dir=self.folder,
                    kind=Kind.STUDY,
                    run_name=study.study_name,
                    tags={Tag.STUDY: study.study_name, Tag.STUDY_ID: study_id},
                )
            else:
                self._run = join_run(tracking, output_dir=self.folder, run_id=earlier)
            study.set_user_attr(RUN_ID, self._run.run_id)
        if earlier is None:
            self._record_settings()
        else:
            self.run.tags({name: str(value) for name, value in tracking.tags.items()})
        if earlier is not None and tracking.run_id not in (None, earlier):
            # `mlflow run` has opened a run for a study that has one.
            set_tags(tracking, str(tracking.run_id), {Tag.CONTINUES: earlier})

    def close_children(self, run_id: str) -> None:
        """Send what dead processes had not sent, and close the runs of their trials in the state that the study has."""
        numbers = {child.run_id: child.trial_number for child in unfinished_children(self.config.tracking, run_id)}
        sent = patiently(self.config.tracking, lambda: sync(self.folder))
        closed = [run.run_id for run in sent.runs if run.interrupted]
        records = self.queue.records()
        by_run = {record.run_id: record for record in records if record.run_id is not None}
        repeats = repeat_states(self.queue.study)
        by_number = {record.number: record for record in records if record.run_id is None}
        for child in dict.fromkeys([*numbers, *closed]):
            if child in repeats:
                if repeats[child] is not State.RUNNING:
                    close_run(self.config.tracking, child, repeats[child])
                continue
            number = numbers.get(child)
            record = by_run.get(child) or (None if number is None else by_number.get(number))
            if child == run_id or (record is not None and record.state is State.RUNNING):
                continue
            state, failure = (State.INTERRUPTED, None) if record is None else (record.state, record.failure)
            close_run(self.config.tracking, child, state, None if state is State.INTERRUPTED else failure)
        for record in records:
            # It was closed with another state just before its process died.
            if record.state is State.INTERRUPTED and record.run_id is not None and record.run_id not in numbers:
                close_run(self.config.tracking, record.run_id, State.INTERRUPTED)

    def progressed(self) -> None:
        """Record and log the progress of the study."""
        records, study, said = self.queue.records(), self.queue.study.study_name, ""
        counts = Counter(record.state for record in records)
        finished = sum(record.counts for record in records)
        metrics: dict[str, float] = {
            Metric.STUDY_COMPLETE: counts[State.COMPLETE],
            Metric.STUDY_PRUNED: counts[State.PRUNED],
            Metric.STUDY_FAILED: counts[State.FAILED],
        }
        best = best_so_far(records, self.directions)
        if best is not None and best.values is not None:
            metrics[Metric.STUDY_BEST] = best.values[0]
            said = f", best {self.objectives[0]} {best.values[0]:.4f} (trial {best.number})"
        self.run.metrics(metrics, step=finished)
        self.describe(records)
        logger.info("Study %s: %d of %d trials%s", study, finished, self.queue.n_trials, said)

    def describe(
        self,
        records: Sequence[TrialRecord],
        *,
        choice: Choice | None = None,
        test: TrialScores | None = None,
        registered: tuple[str, str] | None = None,
    ) -> None:
        """Write the leaderboard on the study's page in MLflow; the arguments are those of `study_note`."""
        note = study_note(
            records,
            self.directions,
            self.objectives,
            study=self.queue.study.study_name,
            experiment_id=self.run.experiment_id,
            choice=choice,
            test=test,
            registered=registered,
            warnings=self.warnings,
        )
        self.run.note(note)

    def close(self, state: State | None, failure: str | None = None) -> None:
        """Stop recording: end the run, or with None leave it open for other processes."""
        if self._run is None:
            return
        if state is None:
            self._run.leave()
        else:
            self._run.finish(state, failure)

    def give_up(self, error: BaseException) -> None:
        """End the run of a study that an error ends; a run that ended well stays so unless a trial has begun since."""
        if self._run is None:
            return
        state, failure = State.INTERRUPTED, None
        if isinstance(error, LorahydraError):
            state, failure = State.FAILED, f"{type(error).__name__}: {error}"
            if not isinstance(error, TrackingError):
                # Trials that will be resumed end in the state that the study has for them, and not as failed.
                with contextlib.suppress(LorahydraError):
                    self.close_children(self.run_id)
        if self._run.before.state is State.COMPLETE and self._begun == len(self.queue.records()):
            state, failure = State.COMPLETE, None
        self.close(state, failure)

    def _record_settings(self) -> None:
        config, study = without_secrets(self.config), self.queue.study
        settings = {
            "n_trials": self.queue.n_trials,
            "sampler": sampler_name(study.sampler),
            "pruner": type(study.pruner).__name__,
        }
        values = {name: value for name, value in params_of(config).items() if not name.startswith("search.first_trial")}
        self.run.params(settings | values)
        self.run.tags({Tag.OUTPUT_DIR: str(self.folder)})
        self.run.text(to_yaml(config), CONFIG_FILE)
        command = study.user_attrs.get(COMMAND) or {}
        self.run.text(OmegaConf.to_yaml(OmegaConf.create(command.get("overrides", []))), OVERRIDES_FILE)
        record_environment(self.run, config.model.device)
        if warm := study.user_attrs.get(WARM):
            self.run.tags({Tag.WARM_START: ", ".join(f"{one['study']} trial {one['trial']}" for one in warm)})
