"""Runs the queue: starts jobs in order, watches those that run, and goes on with those whose process died.

The truth is in the database and in each job's folder, never in this process alone, so that it may be killed at any
moment and another one goes on from there:

| state | the job's lock | what the next look does |
|---|---|---|
| `queued` | | `starting`, when a place is free; the process is started after that is written down |
| `starting` | free | starts the process, which runs the attempt once however often it is started |
| `starting` | held | `running` |
| `running` | free, and it said how it ended | `complete` or `failed` |
| `running` | free, and it said nothing | a crash: `queued` again, before all others |
| `cancelling` | held | Ctrl-C, and after some seconds a kill |
| `cancelling` | free | `cancelled` |
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from pathlib import Path
from typing import Any, cast

from sqlalchemy import CursorResult, func, select, update

from lorahydra.config.compose import literal
from lorahydra.errors import LorahydraError
from lorahydra.service.database import Database, Job
from lorahydra.service.processes import End, JobProcess
from lorahydra.service.results import Stores
from lorahydra.service.views import JobState

__all__ = ["ACTIVE", "MOST_CRASHES", "Supervisor", "job_study"]

logger = logging.getLogger(__name__)

ACTIVE = (JobState.STARTING, JobState.RUNNING, JobState.CANCELLING)
LOOK_SECONDS = 0.5
PROGRESS_SECONDS = 2.0
SECONDS_TO_STOP = 6.0
"""Between Ctrl-C and a kill."""
SECONDS_TO_START = 60.0
"""Until a process that never took its lock is killed."""
MOST_CRASHES = 3
"""How often a study is gone on with by itself."""
INTERRUPTED = 130


class Supervisor(threading.Thread):
    """A thread that looks after all jobs.

    Args:
        database: Where they are.
        folder: Their folders are in it.
        workers: How many may run at the same time.
        stores: What they record to.
    """

    def __init__(self, database: Database, folder: Path, workers: int, stores: Stores) -> None:
        super().__init__(name="jobs", daemon=True)
        self.ready = threading.Event()
        """MLflow's store is there."""
        self.fault: str | None = None
        """Why jobs cannot be looked after; None as long as they are."""
        self._database = database
        self._folder = folder
        self._workers = workers
        self._stores = stores
        self._processes: dict[int, JobProcess] = {}
        self._interrupted: dict[int, float] = {}
        self._looked: dict[int, float] = {}
        self._wake, self._stopping = threading.Event(), threading.Event()

    def run(self) -> None:
        """Look after jobs until `stop`."""
        while not self._stopping.is_set():
            try:
                self._look()
                self.fault = None
            except LorahydraError as error:
                self.fault = str(error)
                logger.error("Jobs cannot be looked after: %s", error)
                self._stopping.wait(5)
            except Exception as error:
                self.fault = f"the server made a mistake ({type(error).__name__}): see its log"
                # Whatever it is, the other jobs shall not wait for it for ever.
                logger.exception("Looking after jobs failed")
                self._stopping.wait(5)
            self._wake.wait(LOOK_SECONDS)
            self._wake.clear()

    def wake(self) -> None:
        """Something has changed: look now."""
        self._wake.set()

    def stop(self) -> None:
        """End the thread; jobs that run go on."""
        self._stopping.set()
        self._wake.set()
        self.join()

    def _look(self) -> None:
        if not self._database.still_mine():
            raise LorahydraError("the connection that holds the database for this server is gone: start it again")
        if not self.ready.is_set():
            self._stores.prepare()
            _spare_the_collector()
            self.ready.set()
        with self._database.reading() as session:
            active = session.scalars(select(Job).where(Job.state.in_(ACTIVE)).order_by(Job.queue).limit(1000)).all()
        for job in active:
            self._watch(job)
        self._start_queued()

    def _start_queued(self) -> None:
        with self._database.reading() as session:
            running = session.scalar(select(func.count()).select_from(Job).where(Job.state.in_(ACTIVE))) or 0
            free = max(0, self._workers - running)
            waiting = select(Job).where(Job.state == JobState.QUEUED).order_by(Job.queue, Job.id).limit(free)
            chosen = session.scalars(waiting).all()
        for job in chosen:
            now = time.time()
            values = {"attempt": job.attempt + 1, "attempt_started": now, "started": job.started or now}
            if self._change(job, JobState.STARTING, **values):
                self._launch(job, job.attempt + 1)

    def _launch(self, job: Job, attempt: int) -> None:
        logger.info("Job %d (%s) starts, attempt %d", job.id, job.name, attempt)
        own = [f"study={job_study(job.id)}", f"hydra.sweeper.storage={literal(self._stores.studies)}"]
        own.append(f"tracking.uri={literal(self._stores.tracking.uri)}")
        try:
            self._process(job.id).start(attempt, [*job.overrides, *own], job.environment)
        except (LorahydraError, OSError) as error:
            logger.error("Job %d cannot be started: %s", job.id, error)
            with self._database.changing() as session:
                values = {"state": JobState.FAILED, "ended": time.time(), "attempt_started": None}
                session.execute(
                    update(Job).where(Job.id == job.id).values(**values, failure=f"it cannot be started: {error}")
                )

    def _watch(self, job: Job) -> None:
        process = self._process(job.id)
        if process.lives():
            if job.state == JobState.CANCELLING:
                self._end(job, process)
            elif job.state == JobState.STARTING:
                self._interrupted.pop(job.id, None)
                self._change(job, JobState.RUNNING)
            self._note_progress(job)
            return
        if process.is_starting():
            # It has not taken its lock yet, or is just giving it back.
            began = job.attempt_started or 0
            if job.state == JobState.CANCELLING or time.time() - began > SECONDS_TO_START:
                self._end(job, process)
            return
        end = process.end(job.attempt)
        if job.state == JobState.STARTING and end is None and not process.was_started(job.attempt):
            # Started anew, and so are the seconds that it may take.
            if self._change(job, JobState.STARTING, attempt_started=time.time()):
                self._launch(job, job.attempt)
            return
        process.kill(job.attempt)  # what a killed study may have left
        self._note_progress(job, at_once=True)
        self._ended(job, end)

    def _end(self, job: Job, process: JobProcess) -> None:
        asked = self._interrupted.get(job.id)
        if asked is None:
            self._interrupted[job.id] = time.monotonic()
            process.interrupt(job.attempt)
        elif time.monotonic() - asked > SECONDS_TO_STOP:
            process.kill(job.attempt)

    def _ended(self, job: Job, end: End | None) -> None:
        at = self._process(job.id).last_sign() if end is None else end.at
        seconds = job.seconds_before + max(0.0, at - (job.attempt_started or at))
        over: dict[str, Any] = {"ended": at, "attempt_started": None, "seconds_before": seconds, "current": None}
        self._interrupted.pop(job.id, None)
        if end is not None and end.exit_code == 0:
            changed = self._change(job, JobState.COMPLETE, failure=None, **over)
        elif job.state == JobState.CANCELLING:
            changed = self._change(job, JobState.CANCELLED, failure=None, **over)
        elif end is not None and 0 < end.exit_code != INTERRUPTED:
            changed = self._change(job, JobState.FAILED, failure=end.failure or f"exit code {end.exit_code}", **over)
        elif job.crashes >= MOST_CRASHES:
            failure = f"its process was killed {job.crashes + 1} times, perhaps for want of memory"
            changed = self._change(job, JobState.FAILED, failure=failure, **over)
        else:
            over["ended"] = None
            changed = self._change(job, JobState.QUEUED, crashes=job.crashes + 1, **over)
            logger.warning("Job %d was killed and goes on (%d of %d times)", job.id, job.crashes + 1, MOST_CRASHES)
        if changed:
            self._processes.pop(job.id, None)
            self._looked.pop(job.id, None)
            self.wake()

    def _note_progress(self, job: Job, *, at_once: bool = False) -> None:
        """Keep what the study knows in the job's row, so that a list of jobs is one query."""
        now = time.monotonic()
        if not at_once and now - self._looked.get(job.id, -PROGRESS_SECONDS) < PROGRESS_SECONDS:
            return
        self._looked[job.id] = now
        try:
            found = self._stores.progress(job_study(job.id))
            run = job.study_run or (self._stores.study_run(job_study(job.id)) if found.begun else None)
        except LorahydraError as error:
            logger.warning("Job %d: how far it is cannot be seen: %s", job.id, error)
            return
        values = {
            "finished": found.finished,
            "trial_seconds": found.trial_seconds,
            "current": found.current,
            "best_score": found.best_score,
            "best_trial": found.best_trial,
            "best_params": dict(found.best_params),
            "baseline_score": found.baseline_score,
            "test_score": found.test_score,
            "study_run": run,
        }
        changed = {name: value for name, value in values.items() if value != getattr(job, name)}
        if "current" in changed:
            changed["current_started"] = time.time()
        if changed:
            with self._database.changing() as session:
                session.execute(update(Job).where(Job.id == job.id).values(**changed))

    def _change(self, job: Job, state: JobState, **values: Any) -> bool:
        """Set a job's state, unless a request has set it meanwhile; the next look sees that."""
        with self._database.changing() as session:
            statement = update(Job).where(Job.id == job.id, Job.state == job.state).values(state=state, **values)
            changed = bool(cast("CursorResult[Any]", session.execute(statement)).rowcount)
        if changed:
            logger.info("Job %d (%s): %s", job.id, job.name, state)
        return changed

    def _process(self, job_id: int) -> JobProcess:
        return self._processes.setdefault(job_id, JobProcess(self._folder / str(job_id)))


def _spare_the_collector() -> None:
    """Exempt what is loaded by now from garbage collection: a walk through all of MLflow stops every request."""
    gc.collect()
    gc.freeze()


def job_study(job_id: int) -> str:
    """Name of a job's study."""
    return f"fine-tune-{job_id}"
