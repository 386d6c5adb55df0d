"""Which process runs which trial: exactly `n_trials` finish, however many processes share a study and however they die.

Every decision is taken under the study's lock. A claim writes, in this order, a running trial, the sampler's state, and
the worker beside the trial. In a database they are there at once, or not at all if the process dies. Where a process of
an earlier version died in its claim, they show how far it got.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from lorahydra.errors import StudyError
from lorahydra.names import State
from lorahydra.sweep.cancelling import begun_with, raise_if_cancelled
from lorahydra.sweep.compat import begin_trial, id_of, known_trials, storage_of, suggest
from lorahydra.sweep.dead_trials import (
    Heartbeat,
    Heartbeats,
    close_trials,
    is_dead,
    queue_again,
    retry_of,
    worker_of,
)
from lorahydra.sweep.running_trial import RunningTrial
from lorahydra.sweep.sampler_state import keep_sampler, restore_sampler
from lorahydra.sweep.settings import MOST_DEATHS
from lorahydra.sweep.stopping import StopRule, ended_early
from lorahydra.sweep.storage import GRACE_SECONDS, study_lock, study_transaction
from lorahydra.sweep.trial_record import COUNTED, TrialRecord, states_of, trial_facts, trial_records
from lorahydra.utils.interrupts import postponed, raise_if_interrupted
from lorahydra.utils.processes import is_here, this_process

__all__ = ["Configure", "TrialQueue"]

logger = logging.getLogger(__name__)

Configure = Callable[[Trial], Sequence[str]]
"""Draws the parameters of a trial and returns its overrides."""
SECONDS_BETWEEN_LOOKS = 1.0


class TrialQueue:
    """The trials of one study.

    Args:
        study: The study.
        n_trials: Finished trials at which it ends.
        max_deaths: How often a process may die with the same parameters before they count as a failed trial.
        stop_rule: When the study ends before that.
    """

    def __init__(
        self, study: optuna.Study, n_trials: int, max_deaths: int = MOST_DEATHS, stop_rule: StopRule | None = None
    ) -> None:
        self.study = study
        self.n_trials = n_trials
        self.max_deaths = max_deaths
        self._stop_rule = stop_rule
        self._heartbeats = Heartbeats(storage_of(study))
        self._begun_with = begun_with(study)
        self._mine: list[RunningTrial] = []

    def records(self) -> list[TrialRecord]:
        """All trials that were begun."""
        return trial_records(self.study)

    def finished(self) -> int:
        """Number of trials that count."""
        return sum(state in COUNTED for state in self._states().values())

    def others(self) -> int:
        """Number of trials that run in other processes."""
        mine = {trial.number for trial in self._mine}
        return sum(state is State.RUNNING and number not in mine for number, state in self._states().items())

    def _states(self) -> dict[int, State]:
        return states_of(self.study.get_trials(deepcopy=False))

    def enqueue_first(self, params: dict[str, Any]) -> None:
        """Make `params` the parameters of trial 0, if the study has no trial yet."""
        with self._lock():
            if not self.study.get_trials(deepcopy=False):
                self.study.enqueue_trial(params)

    def has_room(self) -> bool:
        """Whether a trial is left to be claimed."""
        return self.finished() + self.others() < self.n_trials and ended_early(self.study.user_attrs) is None

    def close_dead(self, killed: Mapping[int, int] | None = None) -> list[TrialRecord]:
        """Close the trials whose process died (`close_trials`); returns them as they were before."""
        if not self._dead():
            return []  # others may wait for the lock
        with self._lock():
            dead = self._dead()
            records = trial_records(self.study, dead)
            close_trials(self.study, dead, self.max_deaths, killed)
            return records

    def wait_for_signs(self) -> list[TrialRecord]:
        """Wait until it is certain of each trial that runs elsewhere whether its process is alive.

        To a restarted container, the trial of its former process still looks as if it were running. Dead trials are
        closed and returned as by `close_dead`.
        """
        told = False
        while True:
            if dead := self.close_dead():
                return dead
            beats = self._heartbeats.look(self._running_elsewhere())
            unsure = {number: beat for number, beat in beats.items() if not beat.renewed}
            if not unsure:
                return []
            if not told:
                _say_waiting(self.study.study_name, unsure)
                told = True
            raise_if_interrupted()
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def had_trial(self, pid: int) -> bool:
        """Whether a process of this machine ever had a trial of the study."""
        workers = [worker_of(trial) for trial in self.study.get_trials(deepcopy=False)]
        return any(worker is not None and worker.get("pid") == pid and is_here(worker) for worker in workers)

    def claim(self, most: int, configure: Configure) -> tuple[list[RunningTrial], Sequence[Sequence[str]]]:
        """Claim up to `most` trials, or fewer if the study needs fewer; returns them and the overrides of each.

        Raises:
            KeyboardInterrupt: The study was cancelled.
        """
        with postponed():
            known = known_trials(self.study)
            # Others wait meanwhile. What a claim reads of a running trial is there when its worker is.
            settled = {id_of(trial) for trial in known if trial.state is TrialState.RUNNING and worker_of(trial)}
            with study_transaction(storage_of(self.study), self.study.study_name, settled):
                raise_if_cancelled(self.study, self._begun_with)
                claimed, overrides = self._claim(most, configure)
            # Only now are they in the database.
            self._mine = [running for running in self._mine if running.state is State.RUNNING] + claimed
            for running in claimed:
                running.stay_alive()
        return claimed, overrides

    def _claim(self, most: int, configure: Configure) -> tuple[list[RunningTrial], Sequence[Sequence[str]]]:
        trials = self.study.get_trials(deepcopy=False)
        # A sampler learns from the existing trials, so those that died in their claim are closed first.
        if undrawn := [trial for trial in self._elsewhere(trials) if worker_of(trial) is None]:
            close_trials(self.study, undrawn, self.max_deaths)
            trials = self.study.get_trials(deepcopy=False)
        states = states_of(trials).values()
        room = self.n_trials - sum(state in COUNTED or state is State.RUNNING for state in states)
        if room <= 0 or (self._stop_rule is not None and self._stop_rule.ends(self.study, self.n_trials)):
            return [], []
        # Trials that are run again are not mixed with new draws, which would normally have seen their results.
        waiting = [trial for trial in trials if trial.state is TrialState.WAITING]
        again = [facts for facts in map(trial_facts, waiting) if facts.get("drawn")]
        together = len(again) or most
        if any(facts.get("deaths") for facts in again):
            together = 1  # one of them may have killed the process, and is not to take the others along again
        restore_sampler(self.study)
        begun = self._begin(min(room, most, together), waiting)
        try:
            overrides = [configure(trial) for trial in begun]
        except Exception:
            close_trials(self.study, [_stored(self.study, trial) for trial in begun], self.max_deaths)
            raise
        # The parameters of a trial that is run again were drawn before.
        if not all(trial_facts(trial).get("drawn") for trial in begun):
            keep_sampler(self.study, max(trial.number for trial in begun))
        claimed = [RunningTrial(self.study, trial) for trial in begun]
        for running in claimed:
            running.note(worker=this_process())
        return claimed, overrides

    def _begin(self, count: int, waiting: Sequence[FrozenTrial]) -> list[Trial]:
        """Begin so many trials, the waiting ones first."""
        begun: list[Trial] = []
        queued = iter(waiting)
        while len(begun) < count:
            # A program that does not take the lock may have begun a waiting trial meanwhile.
            if (trial := begin_trial(self.study, next(queued, None))) is not None:
                begun.append(trial)
        return begun

    def take_again(self, run_id: str) -> RunningTrial | None:
        """Begin again the trial of an MLflow run whose answers are judged again.

        A trial ends only once in Optuna. So this is another trial with the same parameters: the one that waits, or a
        new one for a trial that failed; None if the study already has its result.

        Raises:
            StudyError: The study has no such run, or its parameters are being run, or were run again.
        """
        with postponed(), self._lock():
            trials = self.study.get_trials(deepcopy=False)
            name = self.study.study_name
            before = [trial for trial in trials if trial_facts(trial).get("run_id") == run_id]
            if not before:
                raise StudyError(f"study {name} has no trial whose MLflow run is {run_id}")
            first = before[-1]
            if first.state in (TrialState.COMPLETE, TrialState.PRUNED):
                return None
            again = first if first.state is TrialState.RUNNING else self._waiting(first)
            if again.state is TrialState.RUNNING:
                raise StudyError(f"trial {again.number} of study {name} is still running: wait until it ends")
            if again.state is not TrialState.WAITING:
                raise StudyError(
                    f"the parameters of trial {first.number} of study {name} were run again as trial {again.number}, "
                    "which counts in its place"
                )
            storage_of(self.study).set_trial_state_values(id_of(again), TrialState.RUNNING)
            trial = Trial(self.study, id_of(again))
            for key, distribution in first.distributions.items():
                suggest(trial, key, distribution)  # what waits has the parameters fixed
            running = RunningTrial(self.study, trial)
            self._mine.append(running)
            running.note(worker=this_process())
            running.stay_alive()
            return running

    def _waiting(self, trial: FrozenTrial) -> FrozenTrial:
        """The last attempt at the parameters of a trial that ended without a result; one is queued if there is none."""
        queue_again(self.study, trial, [])
        while (again := retry_of(self.study, trial)) is not None:
            trial = again
        return trial

    def interrupt_mine(self) -> None:
        """End this process's running trials as interrupted and queue their parameters again."""
        try:
            with self._lock():
                for running in self._mine:
                    stored = _stored(self.study, running.trial)
                    # The interrupt may have come when the trial had ended in the database, but not yet in this process.
                    if running.state is State.RUNNING and not stored.state.is_finished():
                        queue_again(self.study, stored, trial_facts(stored).get("deaths", []))
                        running.interrupted()
        finally:
            for running in self._mine:
                running.leave()

    def _lock(self) -> Any:
        return study_lock(storage_of(self.study), self.study.study_name)

    def _running_elsewhere(self) -> list[FrozenTrial]:
        return self._elsewhere(self.study.get_trials(deepcopy=False))

    def _elsewhere(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        mine = {trial.number for trial in self._mine}
        return [trial for trial in trials if trial.state is TrialState.RUNNING and trial.number not in mine]

    def _dead(self) -> list[FrozenTrial]:
        candidates = self._running_elsewhere()
        beats = self._heartbeats.look(candidates)
        return [trial for trial in candidates if is_dead(trial, beats.get(trial.number))]


def _say_waiting(study: str, unsure: Mapping[int, Heartbeat]) -> None:
    age = min(beat.age for beat in unsure.values())
    logger.info(
        "Study %s: trial %s ran in a process that cannot be seen from here, last heard from %.0f s ago; "
        "waiting up to %.0f s to learn whether it is alive",
        study,
        ", ".join(map(str, sorted(unsure))),
        age,
        max(0.0, GRACE_SECONDS - age) + SECONDS_BETWEEN_LOOKS,
    )


def _stored(study: optuna.Study, trial: Trial) -> FrozenTrial:
    return storage_of(study).get_trial(id_of(trial))
