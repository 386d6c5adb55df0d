"""Who runs which trial of a study: exactly `n_trials` finish, however many processes work on it and however they die.

Every decision is taken under the study's lock. A claim leaves, in this order, a running trial in Optuna's tables, the
sampler's state in the study, and the worker beside the trial; each step tells the next process how far a dead one got.
"""

from __future__ import annotations

import logging
import os
import signal
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from lorahydra.errors import StudyError
from lorahydra.names import State
from lorahydra.sweep.heartbeats import Heartbeat, Heartbeats
from lorahydra.sweep.running_trial import RunningTrial, tell
from lorahydra.sweep.sampler_state import restore_sampler, sampler_state
from lorahydra.sweep.storage import study_lock
from lorahydra.sweep.trial_record import ATTRIBUTE, TrialRecord, trial_records
from lorahydra.utils.interrupts import postponed, raise_if_interrupted
from lorahydra.utils.processes import is_alive, is_here, this_process

__all__ = ["MOST_DEATHS", "Configure", "TrialQueue"]

logger = logging.getLogger(__name__)

Configure = Callable[[list[Trial]], Sequence[Sequence[str]]]
"""Draws the parameters of trials and returns the overrides of each."""

SAMPLER = "lorahydra.sampler"
FIXED = "fixed_params"
"""System attribute in which Optuna keeps the parameters of a trial that waits."""
MOST_DEATHS = 2
"""Parameters whose process died so often make a failed trial: they may be what kills it (by the memory they need)."""
SECONDS_BETWEEN_LOOKS = 1.0


class TrialQueue:
    """The trials of one study.

    Args:
        study: The study.
        n_trials: Finished trials at which it ends.
        max_deaths: How often a process may die with the same parameters before they count as a failed trial.
    """

    def __init__(self, study: optuna.Study, n_trials: int, max_deaths: int = MOST_DEATHS) -> None:
        self.study = study
        self.n_trials = n_trials
        self.max_deaths = max_deaths
        self._heartbeats = Heartbeats(study._storage)
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

    def has_room(self) -> bool:
        """Whether a trial is left to be claimed."""
        return self.finished() + self.others() < self.n_trials

    def close_dead(self, killed: Mapping[int, int] | None = None) -> list[TrialRecord]:
        """End the trials whose process died, and queue their parameters again unless they died too often.

        Args:
            killed: Signal by number of a process of this machine, where it is known.

        Returns:
            Those trials as they were.
        """
        with self._lock():
            dead = self._dead()
            records = trial_records(dead)
            self._give_up(dead, killed or {})
            return records

    def wait_for_signs(self) -> list[TrialRecord]:
        """Wait until it is known of all trials that run elsewhere whether they live.

        A container that was restarted finds the trial of its former process running, and cannot see that process.

        Returns:
            Trials that were found dead and closed, as they were.
        """
        told = False
        while True:
            if dead := self.close_dead():
                return dead
            signs = self._signs(self._running_elsewhere())
            unsure = {number: beat for number, beat in signs.items() if not beat.renewed}
            if not unsure:
                return []
            if not told:
                _say_waiting(self.study.study_name, unsure)
                told = True
            raise_if_interrupted()
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def had_trial(self, pid: int) -> bool:
        """Whether a process of this machine ever had a trial of the study."""
        workers = [_worker(trial) for trial in self.study.get_trials(deepcopy=False)]
        return any(worker is not None and worker.get("pid") == pid and is_here(worker) for worker in workers)

    def claim(self, most: int, configure: Configure) -> tuple[list[RunningTrial], Sequence[Sequence[str]]]:
        """Take up to `most` trials, fewer where the study has no room for more.

        Returns:
            The trials and the overrides of each.
        """
        with postponed(), self._lock():
            # What a sampler draws depends on the trials there are: one that died in its claim is none.
            self._give_up([trial for trial in self._running_elsewhere() if _worker(trial) is None], {})
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
                self._give_up([self.study._storage.get_trial(trial._trial_id) for trial in trials], {})
                raise
            # A trial that is run again drew its parameters before.
            if not all(trial.user_attrs.get(ATTRIBUTE, {}).get("drawn") for trial in trials):
                self._remember_sampler(max(trial.number for trial in trials))
            self._mine = [running for running in self._mine if running.state is State.RUNNING]
            claimed = [RunningTrial(self.study, trial) for trial in trials]
            self._mine += claimed
            for running in claimed:
                running.note(worker=this_process())
        return claimed, overrides

    def take_again(self, run_id: str) -> RunningTrial | None:
        """Begin the trial anew whose answers, recorded in an MLflow run, are judged again.

        A trial in Optuna ends once, so this is another one with the same parameters: the one that waits, or for a
        trial that failed a new one in its place.

        Args:
            run_id: The run.

        Returns:
            The trial; None where the study has its result.

        Raises:
            StudyError: The study does not know the run, or it is at work on those parameters, or ran them again.
        """
        with postponed(), self._lock():
            trials = self.study.get_trials(deepcopy=False)
            name = self.study.study_name
            before = [trial for trial in trials if trial.user_attrs.get(ATTRIBUTE, {}).get("run_id") == run_id]
            if not before:
                raise StudyError(f"study {name} has no trial whose MLflow run is {run_id}")
            first = before[-1]
            if first.state in (TrialState.COMPLETE, TrialState.PRUNED):
                return None
            again = first if first.state is TrialState.RUNNING else self._waiting(first)
            if again.state is TrialState.RUNNING:
                raise StudyError(f"trial {again.number} of study {name} is going on: wait for its end")
            if again.state is not TrialState.WAITING:
                raise StudyError(
                    f"the parameters of trial {first.number} of study {name} were run again as trial {again.number}, "
                    "which counts in its place"
                )
            self.study._storage.set_trial_state_values(again._trial_id, TrialState.RUNNING)
            trial = Trial(self.study, again._trial_id)
            for key, distribution in first.distributions.items():
                trial._suggest(key, distribution)  # what waits has the parameters fixed
            running = RunningTrial(self.study, trial)
            self._mine.append(running)
            running.note(worker=this_process())
            return running

    def _waiting(self, trial: FrozenTrial) -> FrozenTrial:
        """The last attempt at the parameters of a trial that ended without a result; queued where there is none."""
        self._queue_again(trial, [])
        last = trial
        for other in self.study.get_trials(deepcopy=False):
            if other.user_attrs.get(ATTRIBUTE, {}).get("retry_of") == last.number:
                last = other
        return last

    def interrupt_mine(self) -> None:
        """End this process's running trials as interrupted and queue their parameters again."""
        try:
            with self._lock():
                for running in self._mine:
                    stored = self.study._storage.get_trial(running.trial._trial_id)
                    # The interrupt may have come between the trial's end in the store and here.
                    if running.state is State.RUNNING and not stored.state.is_finished():
                        self._queue_again(stored, stored.user_attrs.get(ATTRIBUTE, {}).get("deaths", []))
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
        signs = self._signs(candidates)
        return [trial for trial in candidates if _is_dead(trial, signs.get(trial.number))]

    def _signs(self, trials: Sequence[FrozenTrial]) -> dict[int, Heartbeat]:
        """The last signs of life of those trials whose process cannot be seen from here, by number."""
        unseen = {
            trial._trial_id: trial.number
            for trial in trials
            if (worker := _worker(trial)) is not None and not is_here(worker)
        }
        return {unseen[trial_id]: beat for trial_id, beat in self._heartbeats.look(unseen).items()}

    def _give_up(self, trials: Sequence[FrozenTrial], killed: Mapping[int, int]) -> None:
        for trial in trials:
            deaths = list(trial.user_attrs.get(ATTRIBUTE, {}).get("deaths", []))
            if (worker := _worker(trial)) is not None:  # else it died in its claim, and not of its parameters
                deaths.append(killed.get(worker.get("pid", 0)) if is_here(worker) else None)
            too_often = worker is not None and len(deaths) >= self.max_deaths
            if not too_often:
                self._queue_again(trial, deaths)
            self._close(trial, deaths, too_often=too_often)

    def _queue_again(self, trial: FrozenTrial, deaths: Sequence[int | None]) -> None:
        facts = trial.user_attrs.get(ATTRIBUTE, {})
        for other in self.study.get_trials(deepcopy=False):
            if other.user_attrs.get(ATTRIBUTE, {}).get("retry_of") == trial.number:
                return  # its closing was cut short
        fixed = trial.system_attrs.get(FIXED, {})
        drawn = bool(facts.get("drawn")) or trial.number <= self.study.user_attrs.get(SAMPLER, {}).get("trial", -1)
        if not drawn and not fixed:
            return  # it died before its parameters were drawn: the next claim draws them
        again = {"retry_of": trial.number, "deaths": list(deaths), "drawn": drawn}
        # Samplers keep beside a trial what its parameters are part of: a place in the grid, a generation.
        system = {**trial.system_attrs, FIXED: {**fixed, **trial.params}} if drawn else {FIXED: fixed}
        self.study.add_trial(create_trial(state=TrialState.WAITING, system_attrs=system, user_attrs={ATTRIBUTE: again}))

    def _close(self, trial: FrozenTrial, deaths: Sequence[int | None], *, too_often: bool) -> None:
        facts = {**trial.user_attrs.get(ATTRIBUTE, {}), "deaths": list(deaths)}
        if too_often:
            facts["failure"] = f"died: its process was killed {_count(deaths)} ({_cause(deaths)})"
            logger.warning("Trial %d counts as failed, %s", trial.number, facts["failure"])
        else:
            facts["interrupted"] = True
            if _worker(trial) is not None:
                logger.warning(
                    "Trial %d was killed with its process (%s), %s with these parameters; they are run again",
                    trial.number,
                    _cause(deaths),
                    _count(deaths),
                )
        self.study._storage.set_trial_user_attr(trial._trial_id, ATTRIBUTE, facts)
        tell(self.study, trial.number, TrialState.FAIL)


def _count(deaths: Sequence[object]) -> str:
    return "once" if len(deaths) == 1 else f"{len(deaths)} times"


def _cause(deaths: Sequence[int | None]) -> str:
    """What is known of the last death, and what is often behind it."""
    known = deaths[-1]
    if known in (None, signal.SIGKILL):
        return "often: out of memory" if known is None else "SIGKILL, often: out of memory"
    return signal.Signals(known).name if known in set(signal.Signals) else f"signal {known}"


def _say_waiting(study: str, unsure: Mapping[int, Heartbeat]) -> None:
    last = max(unsure.values(), key=lambda beat: beat.grace - beat.age)
    logger.info(
        "Study %s: trial %s ran in a process that cannot be seen from here, last heard of %.0f s ago; waiting up to "
        "%.0f s to know whether it lives",
        study,
        ", ".join(map(str, sorted(unsure))),
        last.age,
        max(0.0, last.grace - last.age) + SECONDS_BETWEEN_LOOKS,
    )


def _is_dead(trial: FrozenTrial, sign: Heartbeat | None) -> bool:
    worker = _worker(trial)
    if worker is None:
        return True  # died between two steps of a claim, which holds the lock that is held here
    if is_here(worker):
        # One of this process that is not among its own: a run before, in a notebook, was stopped twice.
        return worker.get("pid") == os.getpid() or not is_alive(worker)
    return sign is not None and sign.dead


def _worker(trial: FrozenTrial) -> Mapping[str, Any] | None:
    worker: Mapping[str, Any] | None = trial.user_attrs.get(ATTRIBUTE, {}).get("worker")
    return worker
