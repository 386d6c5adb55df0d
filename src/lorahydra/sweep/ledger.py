"""Who runs which trial of a study: exactly `n_trials` finish, however many processes work on it and however they die.

Every decision is taken under the study's lock. A claim leaves, in this order, a running trial in Optuna's tables, the
sampler's state in the study, and the worker beside the trial; each step tells the next process how far a dead one got.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from lorahydra.names import State
from lorahydra.sweep.liveness import is_here, lives, this_worker
from lorahydra.sweep.records import ATTRIBUTE, TrialRecord, trial_records
from lorahydra.sweep.running import RunningTrial, tell
from lorahydra.sweep.samplers import restore_sampler, sampler_state
from lorahydra.sweep.storage import study_lock

__all__ = ["Configure", "Ledger"]

logger = logging.getLogger(__name__)

Configure = Callable[[list[Trial]], Sequence[Sequence[str]]]
"""Draws the parameters of trials and returns the overrides of each."""

SAMPLER = "lorahydra.sampler"
FIXED = "fixed_params"
"""System attribute in which Optuna keeps the parameters of a trial that waits."""
MOST_ATTEMPTS = 10
"""A trial whose process died so often ends as failed: it may be what kills it (the system's memory, for example)."""


class Ledger:
    """The trials of one study.

    Args:
        study: The study.
        n_trials: Finished trials at which it ends.
    """

    def __init__(self, study: optuna.Study, n_trials: int) -> None:
        self.study = study
        self.n_trials = n_trials
        self._mine: list[RunningTrial] = []

    def records(self) -> list[TrialRecord]:
        """All trials that were begun."""
        return trial_records(self.study.get_trials(deepcopy=False))

    def finished(self) -> int:
        """Trials that count: complete, pruned or failed."""
        return sum(record.counts for record in self.records())

    def others(self) -> int:
        """Trials that run in other processes."""
        mine = {trial.number for trial in self._mine}
        return sum(record.state is State.RUNNING and record.number not in mine for record in self.records())

    def enqueue_first(self, params: dict[str, Any]) -> None:
        """Make `params` the parameters of trial 0, where the study has no trial yet."""
        with self._lock():
            if not self.study.get_trials(deepcopy=False):
                self.study.enqueue_trial(params)

    def close_dead(self) -> list[TrialRecord]:
        """End the trials whose process died, and queue their parameters again; returns those trials as they were."""
        with self._lock():
            dead = self._dead()
            records = trial_records(dead)
            self._give_up(dead)
            return records

    def claim(self, most: int, configure: Configure) -> tuple[list[RunningTrial], Sequence[Sequence[str]]]:
        """Take up to `most` trials, fewer where the study has no room for more.

        Returns:
            The trials and the overrides of each.
        """
        with self._lock():
            # What a sampler draws depends on the trials there are: one that died in its claim is none.
            self._give_up([trial for trial in self._running_elsewhere() if _worker(trial) is None])
            room = self.n_trials - sum(record.counts or record.state is State.RUNNING for record in self.records())
            if room <= 0:
                return [], []
            kept = self.study.user_attrs.get(SAMPLER)
            if kept is None:
                self._remember_sampler(-1)
            else:
                restore_sampler(self.study, kept["state"])
            with warnings.catch_warnings():
                # Optuna expects heartbeats from its own loop only; `RunningTrial` sends them here.
                warnings.filterwarnings("ignore", "Heartbeat of storage")
                trials = [self.study.ask() for _ in range(min(room, most))]
            try:
                overrides = configure(trials)
            except Exception:
                self._give_up([self.study._storage.get_trial(trial._trial_id) for trial in trials])
                raise
            # A trial that is run again drew its parameters before.
            if not all(trial.user_attrs.get(ATTRIBUTE, {}).get("drawn") for trial in trials):
                self._remember_sampler(max(trial.number for trial in trials))
            self._mine = [running for running in self._mine if running.state is State.RUNNING]
            claimed = [RunningTrial(self.study, trial) for trial in trials]
            self._mine += claimed
            for running in claimed:
                running.note(worker=this_worker())
        return claimed, overrides

    def interrupt_mine(self) -> None:
        """End this process's running trials as interrupted and queue their parameters again."""
        try:
            with self._lock():
                for running in self._mine:
                    if running.state is State.RUNNING:
                        self._queue_again(self.study._storage.get_trial(running.trial._trial_id))
                        running.interrupted()
        finally:
            for running in self._mine:
                running.leave()

    def _lock(self) -> Any:
        return study_lock(self.study._storage, self.study.study_name)

    def _remember_sampler(self, last: int) -> None:
        """Keep the sampler's state as it is after the draws of trial `last`."""
        self.study.set_user_attr(SAMPLER, {"trial": last, "state": sampler_state(self.study)})

    def _running_elsewhere(self) -> list[FrozenTrial]:
        mine = {trial.number for trial in self._mine}
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return [trial for trial in running if trial.number not in mine]

    def _dead(self) -> list[FrozenTrial]:
        candidates = self._running_elsewhere()
        if not candidates:
            return []
        storage = self.study._storage
        silent: set[int] = set()
        if isinstance(storage, BaseHeartbeat) and storage.get_heartbeat_interval() is not None:
            silent = set(storage._get_stale_trial_ids(self.study._study_id))
        return [trial for trial in candidates if _is_dead(trial, silent)]

    def _give_up(self, trials: Sequence[FrozenTrial]) -> None:
        for trial in trials:
            self._queue_again(trial)
            self._close(trial)

    def _queue_again(self, trial: FrozenTrial) -> None:
        facts = trial.user_attrs.get(ATTRIBUTE, {})
        if facts.get("attempt", 1) >= MOST_ATTEMPTS:
            return
        for other in self.study.get_trials(deepcopy=False):
            if other.user_attrs.get(ATTRIBUTE, {}).get("retry_of") == trial.number:
                return  # its closing was cut short
        fixed = trial.system_attrs.get(FIXED, {})
        drawn = bool(facts.get("drawn")) or trial.number <= self.study.user_attrs.get(SAMPLER, {}).get("trial", -1)
        if not drawn and not fixed:
            return  # it died before its parameters were drawn: the next claim draws them
        again = {"retry_of": trial.number, "attempt": facts.get("attempt", 1) + 1, "drawn": drawn}
        # Samplers keep beside a trial what its parameters are part of: a place in the grid, a generation.
        system = {**trial.system_attrs, FIXED: {**fixed, **trial.params}} if drawn else {FIXED: fixed}
        self.study.add_trial(create_trial(state=TrialState.WAITING, system_attrs=system, user_attrs={ATTRIBUTE: again}))

    def _close(self, trial: FrozenTrial) -> None:
        facts = dict(trial.user_attrs.get(ATTRIBUTE, {}))
        attempts = facts.get("attempt", 1)
        if attempts >= MOST_ATTEMPTS:
            facts["failure"] = f"died: its process was killed {attempts} times"
        else:
            facts["interrupted"] = True
        self.study._storage.set_trial_user_attr(trial._trial_id, ATTRIBUTE, facts)
        tell(self.study, trial.number, TrialState.FAIL)


def _is_dead(trial: FrozenTrial, silent: set[int]) -> bool:
    worker = _worker(trial)
    if worker is None:
        return True  # died between two steps of a claim, which holds the lock that is held here
    if is_here(worker):
        # One of this process that is not among its own: a run before, in a notebook, was stopped twice.
        return worker.get("pid") == os.getpid() or not lives(worker)
    return trial._trial_id in silent


def _worker(trial: FrozenTrial) -> Mapping[str, Any] | None:
    worker: Mapping[str, Any] | None = trial.user_attrs.get(ATTRIBUTE, {}).get("worker")
    return worker
