"""Trials whose process died: they are found and closed, and their parameters are queued again.

All of it happens under the study's lock. Each step can be repeated, because the process that closes a dead trial may
die as well.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from lorahydra.sweep.compat import database_of, id_of, last_heartbeats, storage_of
from lorahydra.sweep.running_trial import tell
from lorahydra.sweep.sampler_state import last_drawn
from lorahydra.sweep.storage import GRACE_SECONDS
from lorahydra.sweep.trial_record import ATTRIBUTE, trial_facts
from lorahydra.utils.processes import is_alive, is_here

__all__ = ["FIXED", "Heartbeat", "Heartbeats", "close_trials", "is_dead", "queue_again", "retry_of", "worker_of"]

logger = logging.getLogger("lorahydra.sweep.trial_queue")

FIXED = "fixed_params"
"""System attribute in which Optuna keeps the parameters of a waiting trial."""


@dataclass(frozen=True)
class Heartbeat:
    """The last sign of life of a trial whose process cannot be seen from here."""

    age: float
    """Seconds since then, by the database's clock; since the first look if there has never been a sign."""
    renewed: bool
    """Whether it came after the first look from here: then the process lives, or lived while this one ran."""


class Heartbeats:
    """The heartbeats in a study's database, as far as trials on other machines and in other containers send them."""

    def __init__(self, storage: BaseStorage) -> None:
        self._database = database_of(storage)
        self._first: dict[int, tuple[datetime | None, datetime]] = {}
        """By id of a trial: its heartbeat and the database's time at the first look."""

    def look(self, trials: Iterable[FrozenTrial]) -> dict[int, Heartbeat]:
        """The heartbeats of those trials whose process cannot be seen from here, by number."""
        unseen = {
            id_of(trial): trial.number
            for trial in trials
            if (worker := worker_of(trial)) is not None and not is_here(worker)
        }
        if not unseen or self._database is None:
            return {}
        now, last = last_heartbeats(self._database, list(unseen))
        beats = {}
        for trial_id, number in unseen.items():
            beat = last.get(trial_id)
            first_beat, first_look = self._first.setdefault(trial_id, (beat, now))
            age = (now - (beat or first_look)).total_seconds()
            renewed = beat is not None and (first_beat is None or beat > first_beat)
            beats[number] = Heartbeat(age, renewed)
        return beats


def worker_of(trial: FrozenTrial) -> Mapping[str, Any] | None:
    """The process that runs a trial; None while the trial is being claimed."""
    worker: Mapping[str, Any] | None = trial_facts(trial).get("worker")
    return worker


def is_dead(trial: FrozenTrial, beat: Heartbeat | None) -> bool:
    """Whether the process of a running trial, which is not one of this process's trials, is gone."""
    worker = worker_of(trial)
    if worker is None:
        return True  # its process died between two steps of a claim, which holds the lock that is held here
    if is_here(worker):
        # A trial of this process is dead as well: an earlier run in a notebook was stopped twice.
        return worker.get("pid") == os.getpid() or not is_alive(worker)
    return beat is not None and beat.age > GRACE_SECONDS


def close_trials(
    study: optuna.Study, trials: Sequence[FrozenTrial], max_deaths: int, killed: Mapping[int, int] | None = None
) -> None:
    """End running trials whose process is gone, and queue their parameters again.

    Args:
        study: The study.
        trials: Its dead trials.
        max_deaths: Number of deaths after which parameters are not queued again.
        killed: The signals that killed processes of this machine, by process number, as far as they were seen.
    """
    for trial in trials:
        deaths = list(trial_facts(trial).get("deaths", []))
        if (worker := worker_of(trial)) is not None:  # else it died in its claim, and not of its parameters
            deaths.append((killed or {}).get(worker.get("pid", 0)) if is_here(worker) else None)
        facts = {**trial_facts(trial), "deaths": deaths}
        times = "once" if len(deaths) == 1 else f"{len(deaths)} times"
        if worker is not None and len(deaths) >= max_deaths:
            facts["failure"] = f"died: its process was killed {times} ({_cause(deaths)})"
            logger.warning("Trial %d counts as failed, %s", trial.number, facts["failure"])
        else:
            queue_again(study, trial, deaths)
            facts["interrupted"] = True
            if worker is not None:
                logger.warning(
                    "Trial %d was killed with its process (%s), %s with these parameters; they are run again",
                    trial.number,
                    _cause(deaths),
                    times,
                )
        storage_of(study).set_trial_user_attr(id_of(trial), ATTRIBUTE, facts)
        tell(study, trial.number, TrialState.FAIL)


def _cause(deaths: Sequence[int | None]) -> str:
    """The signal of the last death, if it was seen, and its likely cause."""
    number = deaths[-1]
    if number in (None, signal.SIGKILL):
        return "often: out of memory" if number is None else "SIGKILL, often: out of memory"
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


def retry_of(study: optuna.Study, trial: FrozenTrial) -> FrozenTrial | None:
    """The trial that repeats the parameters of another one."""
    trials = study.get_trials(deepcopy=False)
    return next((other for other in trials if trial_facts(other).get("retry_of") == trial.number), None)


def queue_again(study: optuna.Study, trial: FrozenTrial, deaths: Sequence[int | None]) -> None:
    """Make a waiting trial with the parameters of one that ended without a result; `deaths` as in `TrialRecord`."""
    if retry_of(study, trial) is not None:
        return  # its closing was cut short
    fixed = trial.system_attrs.get(FIXED, {})
    drawn = bool(trial_facts(trial).get("drawn")) or trial.number <= last_drawn(study)
    if not drawn and not fixed:
        return  # it died before its parameters were drawn: the next claim draws them
    again = {"retry_of": trial.number, "deaths": list(deaths), "drawn": drawn}
    # Samplers keep beside a trial what its parameters are part of: a place in the grid, a generation.
    system = {**trial.system_attrs, FIXED: {**fixed, **trial.params}} if drawn else {FIXED: fixed}
    study.add_trial(create_trial(state=TrialState.WAITING, system_attrs=system, user_attrs={ATTRIBUTE: again}))
