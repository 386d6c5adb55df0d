"""The study's own run in MLflow, which all of its processes record to."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from lorahydra.config.compose import flatten, to_yaml
from lorahydra.config.schema import ExperimentConfig
from lorahydra.names import CONFIG_FILE, OVERRIDES_FILE, Kind, Metric, State, Tag
from lorahydra.sweep.mlflow_notes import study_note
from lorahydra.sweep.ranking import best_so_far
from lorahydra.sweep.sampler_state import sampler_name
from lorahydra.sweep.storage import study_lock
from lorahydra.sweep.study_store import COMMAND, STUDY_ID
from lorahydra.sweep.trial_queue import TrialQueue
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
from lorahydra.trial.record import record_environment, without_secrets

__all__ = ["StudyRun"]

logger = logging.getLogger("lorahydra.sweep")

RUN_ID = "lorahydra.run_id"


class StudyRun:
    """The parent run of a study's trials, as this process sees it."""

    def __init__(self, config: ExperimentConfig, queue: TrialQueue, folder: Path) -> None:
        self.config = config
        self.folder = folder
        self.warnings: Sequence[str] = ()
        """What is to be known of the data, where this process has read them."""
        self._queue = queue
        self._run: TrackedRun | None = None
        self._begun = 0
        """Trials when this process began."""

    @property
    def run_id(self) -> str:
        """The run."""
        return self.run.run_id

    @property
    def is_open(self) -> bool:
        """Whether this process records the run."""
        return self._run is not None

    @property
    def run(self) -> TrackedRun:
        """The open run."""
        assert self._run is not None
        return self._run

    def open(self) -> None:
        """Make the run or join it, and close what dead processes left open."""
        study = self._queue.study
        self._begun = len(self._queue.records())
        known = study.user_attrs.get(RUN_ID)
        if known is not None:
            self._queue.close_dead()
            # Before joining: an end that a dead process could not send would close the run again.
            self.close_children(known)
        with study_lock(study._storage, study.study_name):
            known = study.user_attrs.get(RUN_ID) or self._find(study.user_attrs[STUDY_ID])
            if known is None:
                self._run = self._start(study.user_attrs[STUDY_ID])
            else:
                self._run = join_run(self.config.tracking, output_dir=self.folder, run_id=known)
            study.set_user_attr(RUN_ID, self._run.run_id)
        if known is None:
            self._describe()
        elif self.config.tracking.run_id not in (None, known):
            # `mlflow run` has opened a run for a study that has one.
            set_tags(self.config.tracking, str(self.config.tracking.run_id), {Tag.CONTINUES: known})

    def close_children(self, run_id: str) -> None:
        """Send what dead processes of the study could not, and close their trials' runs as the study knows them.

        Args:
            run_id: The study's run.
        """
        numbers = {child.run_id: child.trial_number for child in unfinished_children(self.config.tracking, run_id)}
        sent = patiently(self.config.tracking, lambda: sync(self.folder))
        closed = [run.run_id for run in sent.runs if run.interrupted]
        records = self._queue.records()
        by_run = {record.run_id: record for record in records if record.run_id is not None}
        by_number = {record.number: record for record in records if record.run_id is None}
        for child in dict.fromkeys([*numbers, *closed]):
            number = numbers.get(child)
            record = by_run.get(child) or (None if number is None else by_number.get(number))
            if child == run_id or (record is not None and record.state is State.RUNNING):
                continue
            if record is None or record.state is State.INTERRUPTED:
                close_run(self.config.tracking, child, State.INTERRUPTED)
            else:
                close_run(self.config.tracking, child, record.state, record.failure)
        for record in records:
            # Closed as something else just before its process died.
            if record.state is State.INTERRUPTED and record.run_id is not None and record.run_id not in numbers:
                close_run(self.config.tracking, record.run_id, State.INTERRUPTED)

    def progressed(self, objectives: list[str], directions: list[str]) -> None:
        """Record and say how far the study is."""
        records = self._queue.records()
        counts = {state: sum(r.state is state for r in records) for state in State}
        finished = sum(record.counts for record in records)
        metrics: dict[str, float] = {
            Metric.STUDY_COMPLETE: float(counts[State.COMPLETE]),
            Metric.STUDY_PRUNED: float(counts[State.PRUNED]),
            Metric.STUDY_FAILED: float(counts[State.FAILED]),
        }
        best = best_so_far(records, directions)
        said = ""
        if best is not None and best.values is not None:
            metrics[Metric.STUDY_BEST] = best.values[0]
            said = f", best {objectives[0]} {best.values[0]:.4f} (trial {best.number})"
        self.run.metrics(metrics, step=finished)
        study = self._queue.study.study_name
        place = self.run.experiment_id
        note = study_note(records, directions, objectives, study=study, experiment_id=place, warnings=self.warnings)
        self.run.note(note)
        logger.info("Study %s: %d of %d trials%s", self._queue.study.study_name, finished, self._queue.n_trials, said)

    def close(self, state: State | None, failure: str | None = None) -> None:
        """Stop recording: end the run, or with None leave it to other processes."""
        if self._run is None:
            return
        if state is None:
            self._run.leave()
        else:
            self._run.finish(state, failure)

    def give_up(self, state: State, failure: str | None = None) -> None:
        """End the run of a study that cannot go on; where it had ended well, and no trial was begun since, it stays."""
        if (
            self._run is not None
            and self._run.before.state is State.COMPLETE
            and self._begun == len(self._queue.records())
        ):
            state, failure = State.COMPLETE, None
        self.close(state, failure)

    def _find(self, study_id: str) -> str | None:
        """The run, where the process that made it died before it could say so."""
        return find_run(self.config.tracking, {Tag.STUDY_ID: study_id})

    def _start(self, study_id: str) -> TrackedRun:
        name = self._queue.study.study_name
        return start_run(
            dataclasses.replace(self.config.tracking, system_metrics=False),
            output_dir=self.folder,
            kind=Kind.STUDY,
            run_name=name,
            tags={Tag.STUDY: name, Tag.STUDY_ID: study_id},
        )

    def _describe(self) -> None:
        config, study = without_secrets(self.config), self._queue.study
        settings = {
            "n_trials": self._queue.n_trials,
            "sampler": sampler_name(study.sampler),
            "pruner": type(study.pruner).__name__,
        }
        own = {name: value for name, value in flatten(config).items() if not name.startswith("search.first_trial")}
        self.run.params(settings | own)
        self.run.text(to_yaml(config), CONFIG_FILE)
        command = study.user_attrs.get(COMMAND) or {}
        self.run.text(OmegaConf.to_yaml(OmegaConf.create(command.get("overrides", []))), OVERRIDES_FILE)
        record_environment(self.run, config.model.device)
