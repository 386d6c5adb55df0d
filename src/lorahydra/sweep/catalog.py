"""The studies of a database: their trials, their winners, and how to resume them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from lorahydra.config.checks import did_you_mean
from lorahydra.config.search import OBJECTIVES
from lorahydra.errors import OutputError, StudyError
from lorahydra.names import STUDY_STORE, Stage, State
from lorahydra.sweep.cancelling import cancel
from lorahydra.sweep.choice import Choice, with_choice
from lorahydra.sweep.compat import storage_of
from lorahydra.sweep.dead_trials import Heartbeats, worker_of
from lorahydra.sweep.ranking import best_so_far, directions_of, ranked
from lorahydra.sweep.stages import stage_of
from lorahydra.sweep.stopping import ended_early
from lorahydra.sweep.storage import GRACE_SECONDS, end_lock, open_storage, reading, shown
from lorahydra.sweep.study_store import COMMAND, RESULT, SPEC, TRIALS, is_concluded
from lorahydra.sweep.submitit_jobs import end_jobs
from lorahydra.sweep.trial_record import TrialRecord, trial_records
from lorahydra.utils.databases import sqlite_file
from lorahydra.utils.processes import is_alive

__all__ = ["StudyEntry", "cancel_study", "end_workers", "find_study", "is_ending", "list_studies", "load_study"]


@dataclass(frozen=True)
class StudyEntry:
    """One study of a database."""

    name: str
    begun: datetime | None
    n_trials: int | None
    """As `hydra.sweeper.n_trials`; None if another program made the study."""
    objectives: list[str]
    directions: list[str]
    trials: list[TrialRecord]
    command: dict[str, Any] | None
    """How it was started: `overrides`, `cwd` and `folder`."""
    alive: bool
    """Whether a process runs one of its trials or names its winner. One on another machine counts while its heartbeats
    are recent."""
    ended_early: str | None
    """When and why the study ended before its last trial (`search.stop_when_sure`), as the end of a sentence."""
    stage: tuple[Stage, float] | None
    """What it does after its last trial, and since when (seconds since the epoch); None before and afterwards."""
    seconds_per_trial: float | None
    """Mean wall time of the finished trials; less than a trial takes if several run at the same time."""
    result: Mapping[str, Any]
    """`best` (a trial's number), `finished` (trials then), `test` (scores) and `choice`; empty before the end."""

    @property
    def finished(self) -> int:
        """Number of trials that count."""
        return sum(trial.counts for trial in self.trials)

    @property
    def state(self) -> State:
        """`complete`, `running` or `interrupted`."""
        if self.has_ended or (self.n_trials is None and not self.alive):
            return State.COMPLETE
        return State.RUNNING if self.alive else State.INTERRUPTED

    @property
    def baseline(self) -> Mapping[str, float | None] | None:
        """Scores of the untuned model on the validation split, as in `TrialRecord`; None before a trial is complete."""
        return next((trial.baseline for trial in self.trials if trial.baseline is not None), None)

    @property
    def best(self) -> TrialRecord | None:
        """The winner; before it is named, the best trial so far by the first objective."""
        if self.has_ended:
            return next(trial for trial in self.trials if trial.number == self.result["best"])
        return best_so_far(self.trials, self.directions)

    @property
    def winner(self) -> TrialRecord | None:
        """The winner; None before it is named."""
        return self.best if self.has_ended else None

    @property
    def choice(self) -> Choice | None:
        """How the winner was chosen; None before that, and for studies that do not say so."""
        return Choice.from_facts(self.result.get("choice")) if self.has_ended else None

    @property
    def leaderboard(self) -> list[TrialRecord]:
        """The trials, best first, with what the choice says about each."""
        winner = None if self.winner is None else self.winner.number
        return ranked(with_choice(self.trials, self.choice, winner), self.directions)

    @property
    def has_all(self) -> bool:
        """Whether no trial is left to be run."""
        return self.ended_early is not None or (self.n_trials is not None and self.finished >= self.n_trials)

    @property
    def has_ended(self) -> bool:
        """Whether its winner is named."""
        return self.has_all and is_concluded(self.result, self.trials)


def list_studies(storage: str = STUDY_STORE) -> list[StudyEntry]:
    """All studies of a store, the newest first.

    Raises:
        LorahydraError: The store cannot be read.
    """
    opened = open_storage(storage, create=False)
    with reading(storage):
        names = optuna.get_all_study_names(opened)
        entries = [_entry(optuna.load_study(study_name=name, storage=opened)) for name in names]
    return sorted(entries, key=lambda entry: entry.begun or datetime.max, reverse=True)


def find_study(name: str, storage: str = STUDY_STORE) -> StudyEntry:
    """One study.

    Raises:
        StudyError: The store has no study of that name.
        LorahydraError: The store cannot be read.
    """
    with reading(storage):
        return _entry(load_study(name, storage))


def cancel_study(name: str, storage: str = STUDY_STORE) -> StudyEntry:
    """End all processes of a study, on whatever machine they are, within a few seconds; returns the study before that.

    Raises:
        StudyError: The store has no study of that name.
        LorahydraError: The store cannot be read or written.
    """
    with reading(storage):
        study = load_study(name, storage)
        entry = _entry(study)
        if not entry.has_ended:
            cancel(study)
            end_jobs(study)
        return entry


def end_workers(name: str, storage: str, *, at_once: bool = False) -> int | None:
    """End what goes on of a study whose command has ended; may be called until nothing is left.

    Args:
        name: The study.
        storage: Its store.
        at_once: End jobs of the cluster that have not ended by themselves, as `scancel` does.

    Returns:
        How many jobs the cluster had for it; None if it did not answer.

    Raises:
        StudyError: The store has no study of that name.
        LorahydraError: The store cannot be read or written.
    """
    with reading(storage):
        study = load_study(name, storage)
        if not _entry(study).has_ended:
            cancel(study)
        return end_jobs(study, running=at_once)


def load_study(name: str, storage: str) -> optuna.Study:
    """One study as Optuna's.

    Raises:
        StudyError: The store has no study of that name.
    """
    opened = open_storage(storage, create=False) if sqlite_file(storage) else _kept_open(storage)
    try:
        return optuna.load_study(study_name=name, storage=opened)
    except KeyError as error:
        hint = did_you_mean(name, optuna.get_all_study_names(opened))
        raise StudyError(
            f"there is no study {name} in {shown(storage)}{hint}: see lorahydra studies list, or name its database "
            "with --storage"
        ) from error


@functools.lru_cache(maxsize=4)
def _kept_open(url: str) -> BaseStorage:
    """The storage on a database server, whose connections are used again: a page asks every few seconds."""
    return open_storage(url, create=False)


def _entry(study: optuna.Study) -> StudyEntry:
    trials = study.get_trials(deepcopy=False)
    running = [trial for trial in trials if not trial.state.is_finished() and worker_of(trial) is not None]
    spec = study.user_attrs.get(SPEC, {})
    directions = directions_of(study)
    objectives = [name for name in str(spec.get("objective", "")).split(", ") if name in OBJECTIVES]
    if len(objectives) != len(directions):  # another program made the study
        objectives = [f"value {index}" for index in range(len(directions))]
    records = trial_records(study, trials)
    finished = {record.number for record in records if record.counts}
    entry = StudyEntry(
        name=study.study_name,
        begun=min((trial.datetime_start for trial in trials if trial.datetime_start is not None), default=None),
        n_trials=study.user_attrs.get(TRIALS),
        objectives=objectives,
        directions=directions,
        trials=records,
        command=study.user_attrs.get(COMMAND),
        ended_early=ended_early(study.user_attrs),
        stage=stage_of(study.user_attrs),
        seconds_per_trial=_seconds_busy([trial for trial in trials if trial.number in finished]),
        result=study.user_attrs.get(RESULT, {}),
        alive=_is_running(study, running),
    )
    return replace(entry, alive=True) if entry.has_all and not entry.has_ended and is_ending(study) else entry


def _is_running(study: optuna.Study, running: Sequence[FrozenTrial]) -> bool:
    """Whether the process of one of these trials is alive, as far as that can be seen from here."""
    beats = Heartbeats(storage_of(study)).look(running)
    seen = (trial for trial in running if trial.number not in beats)
    return any(is_alive(worker_of(trial) or {}) for trial in seen) or any(
        beat.age < GRACE_SECONDS for beat in beats.values()
    )


def is_ending(study: optuna.Study) -> bool:
    """Whether a process names the winner of a study just now."""
    try:
        with end_lock(storage_of(study), study.study_name, wait=False):
            return False
    except TimeoutError:
        return True
    except OutputError:  # the folder is read-only, so nobody can hold a lock there
        return False


def _seconds_busy(trials: Sequence[FrozenTrial]) -> float | None:
    """Mean wall time per trial: what several trials share, because they run at the same time, counts once."""
    times = [(trial.datetime_start, trial.datetime_complete) for trial in trials]
    busy, until = 0.0, None
    for began, ended in sorted((began, ended) for began, ended in times if began is not None and ended is not None):
        if until is None or began > until:
            until = began
        busy += max(0.0, (ended - until).total_seconds())
        until = max(until, ended)
    return busy / len(trials) if busy else None
