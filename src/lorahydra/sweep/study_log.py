"""Says what the processes of a study do, wherever they run: from its database, to the log and as a bar."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import optuna
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial
from sqlalchemy.exc import SQLAlchemyError

from lorahydra.names import State
from lorahydra.sweep.dead_trials import worker_of
from lorahydra.sweep.labels import value_text
from lorahydra.sweep.ranking import best_so_far, directions_of
from lorahydra.sweep.trial_queue import TrialQueue
from lorahydra.sweep.trial_record import TrialRecord, trial_records
from lorahydra.utils.progress import Progress

__all__ = ["StudyLog", "study_log"]

logger = logging.getLogger("lorahydra.sweep")

SECONDS_BETWEEN_LOOKS = 2.0


@contextmanager
def study_log(queue: TrialQueue) -> Iterator[None]:
    """Log trials that begin and end in other processes, while this one waits."""
    left = threading.Event()

    def look() -> None:
        log = StudyLog(queue.study)
        with Progress().task(f"Study {queue.study.study_name}", queue.n_trials) as advance:
            advance(queue.finished(), "")
            while not left.wait(SECONDS_BETWEEN_LOOKS):
                # The database may be unreachable for a while; a worker that needs it reports that.
                with suppress(SQLAlchemyError, StorageInternalError):
                    advance(*log.look())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        left.set()
        thread.join(timeout=SECONDS_BETWEEN_LOOKS)


class StudyLog:
    """The trials of a study as far as they were logged."""

    def __init__(self, study: optuna.Study) -> None:
        self._study = study
        self._states = {record.number: record.state for record in self._records()[1]}

    def look(self) -> tuple[int, str]:
        """Log what has happened since the last look; returns how many trials have finished, and the best one."""
        trials, records = self._records()
        finished = 0
        for record in records:
            worker = worker_of(trials[record.number])
            if worker is None:
                continue  # it is being claimed
            before, self._states[record.number] = self._states.get(record.number), record.state
            if before is None:
                params = ", ".join(f"{name}={value_text(value)}" for name, value in record.params.items())
                logger.info("Trial %d begins on %s: %s", record.number, worker["host"], params)
            if before is not record.state and record.state is not State.RUNNING:
                finished += record.counts
                logger.info("Trial %d: %s", record.number, _end_of(record))
        best = best_so_far(records, directions_of(self._study))
        return finished, "" if best is None or best.values is None else f"best {best.values[0]:.4f}"

    def _records(self) -> tuple[Sequence[FrozenTrial], Sequence[TrialRecord]]:
        trials = self._study.get_trials(deepcopy=False)
        return trials, trial_records(self._study, trials)


def _end_of(record: TrialRecord) -> str:
    said = f"{record.state}" if record.values is None else f"{record.state}, {record.values[0]:.4f}"
    said += "" if record.seconds is None else f" after {record.seconds:.0f} s"
    return f"{said} ({record.failure})" if record.failure else said
