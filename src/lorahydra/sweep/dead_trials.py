"""Trials that ended with their process: they are closed, and their parameters are queued again.

All of it happens under the study's lock. Each step can be repeated, because the process that closes a dead trial may
die as well.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from lorahydra.sweep.compat import id_of, storage_of
from lorahydra.sweep.heartbeats import Heartbeat
from lorahydra.sweep.running_trial import tell
from lorahydra.sweep.sampler_state import last_drawn
from lorahydra.sweep.trial_record import ATTRIBUTE, trial_facts
from lorahydra.utils.processes import is_alive, is_here

__all__ = ["close_trials", "is_dead", "queue_again", "retry_of", "worker_of"]

logger = logging.getLogger("lorahydra.sweep.trial_queue")

FIXED = "fixed_params"
"""System attribute in which Optuna keeps the parameters of a waiting trial."""


def worker_of(trial: FrozenTrial) -> Mapping[str, Any] | None:
    """The process that runs a trial; None while the trial is being claimed."""
    worker: Mapping[str, Any] | None = trial_facts(trial).get("worker")
    return worker


def is_dead(trial: FrozenTrial, sign: Heartbeat | None) -> bool:
    """Whether the process of a running trial is gone.

    Args:
        trial: A trial that this process does not run.
        sign: Its heartbeat, if its process cannot be seen from here.
    """
    worker = worker_of(trial)
    if worker is None:
        return True  # its process died between two steps of a claim, which holds the lock that is held here
    if is_here(worker):
        # A trial of this process is dead as well: an earlier run in a notebook was stopped twice.
        return worker.get("pid") == os.getpid() or not is_alive(worker)
    return sign is not None and sign.dead


def close_trials(
    study: optuna.Study, trials: Sequence[FrozenTrial], max_deaths: int, killed: Mapping[int, int] | None = None
) -> None:
    """End dead trials, and queue their parameters again unless their processes died too often.

    Args:
        study: The study.
        trials: Running trials whose process is gone.
        max_deaths: How often a process may die with the same parameters.
        killed: The signal that killed a process, by process number on this machine, if it was seen.
    """
    for trial in trials:
        deaths = list(trial_facts(trial).get("deaths", []))
        if (worker := worker_of(trial)) is not None:  # else it died in its claim, and not of its parameters
            deaths.append((killed or {}).get(worker.get("pid", 0)) if is_here(worker) else None)
        too_often = worker is not None and len(deaths) >= max_deaths
        if not too_often:
            queue_again(study, trial, deaths)
        _close(study, trial, deaths, too_often=too_often)


def retry_of(study: optuna.Study, trial: FrozenTrial) -> FrozenTrial | None:
    """The trial that repeats the parameters of another one."""
    trials = study.get_trials(deepcopy=False)
    return next((other for other in trials if trial_facts(other).get("retry_of") == trial.number), None)


def queue_again(study: optuna.Study, trial: FrozenTrial, deaths: Sequence[int | None]) -> None:
    """Make a waiting trial with the parameters of one that ended without a result.

    Args:
        study: The study.
        trial: That trial.
        deaths: Signals of the processes that died with these parameters; None if the signal was not seen.
    """
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


def _close(study: optuna.Study, trial: FrozenTrial, deaths: Sequence[int | None], *, too_often: bool) -> None:
    facts = {**trial_facts(trial), "deaths": list(deaths)}
    times = "once" if len(deaths) == 1 else f"{len(deaths)} times"
    if too_often:
        facts["failure"] = f"died: its process was killed {times} ({_cause(deaths)})"
        logger.warning("Trial %d counts as failed, %s", trial.number, facts["failure"])
    else:
        facts["interrupted"] = True
        if worker_of(trial) is not None:
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
