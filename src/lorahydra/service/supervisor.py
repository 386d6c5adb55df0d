"""Runs the queue: starts jobs in order, watches those that run, and continues those whose process died.

The truth is in the database and in each job's folder, never only in this process. It may therefore be killed at any
moment, and another server continues from there:

| state | the job's lock | what the supervisor does when it looks |
|---|---|---|
| `queued` | | `starting`, when a worker is free; the process is started after that is written down |
| `starting` | free | starts the process, which runs the attempt once however often it is started |
| `starting` | held | `running` |
| `running` | free, and it said how it ended | `complete` or `failed` |
| `running` | free, and it said nothing | a crash: `queued` again, before all others |
| `cancelling` | held | Ctrl-C, and a kill some seconds later |
| `cancelling` | free | `cancelled`, when none of its workers is left |

Workers on a cluster outlive a job's process. A crashed job's next process waits for them; any other job has ended only
when the cluster has none of them left: they are ended first.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from sqlalchemy import CursorResult, func, select, update

from lorahydra.config.compose import literal
from lorahydra.errors import LorahydraError
from lorahydra.names import State
from lorahydra.service.choices import Choices
from lorahydra.service.database import Database, Dataset, Job
from lorahydra.service.folders import TEMPORARY, cache_folder
from lorahydra.service.launching import launch_overrides
from lorahydra.service.processes import JobProcess
from lorahydra.service.results import Progress, Stores
from lorahydra.service.views import JobState
from lorahydra.service.watcher import Watcher, fault_of
from lorahydra.utils.databases import sqlite_file
from lorahydra.utils.files import DATA_CACHE

__all__ = ["ACTIVE", "MOST_CRASHES", "Supervisor", "job_study", "study_name"]

logger = logging.getLogger(__name__)

ACTIVE = (JobState.STARTING, JobState.RUNNING, JobState.CANCELLING)
LOOK_SECONDS = 0.5
PROGRESS_SECONDS = 2.0
ERROR_SECONDS = 5.0
SECONDS_TO_STOP = 6.0
"""Between Ctrl-C and a kill."""
SECONDS_TO_START = 60.0
"""After this time, a process that has not taken its lock is killed."""
MOST_CRASHES = 3
"""How often a study is continued without being asked."""
SECONDS_FOR_WORKERS = 60.0
"""Between the cancellation of workers on a cluster, which they notice by themselves, and their end by the cluster."""
SECONDS_TO_GIVE_UP = 600.0
"""After this time, a cluster or a database that does not answer is not asked any more whether workers have ended."""
INTERRUPTED = 130
PROGRESS_COLUMNS = tuple(name for name in Progress.__dataclass_fields__ if name not in ("best_run", "best_folder"))


class Supervisor(Watcher):
    """A thread that looks after all jobs, of which `workers` may run at the same time; `folder` holds their folders."""

    def __init__(self, database: Database, folder: Path, workers: int, stores: Stores, choices: Choices) -> None:
        super().__init__("jobs", LOOK_SECONDS)
        self.ready = threading.Event()
        """Set when MLflow's store exists."""
        self.fault: str | None = None
        """Why jobs cannot be started or watched now, in one line; None as long as they can."""
        self._database = database
        self._folder = folder
        self._workers = workers
        self._stores = stores
        self._choices = choices
        self._processes: dict[int, JobProcess] = {}

    def _look(self) -> None:
        self._supervise()
        self.fault = None

    def _failed(self, error: Exception) -> None:
        self.fault = fault_of(error)
        is_known = isinstance(error, LorahydraError)
        logger.error("Fine-tunes cannot be started or watched: %s", error, exc_info=not is_known)
        self._stopping.wait(ERROR_SECONDS)

    def _supervise(self) -> None:
        if not self._database.still_mine():
            raise LorahydraError(
                "the connection that reserves the database for this server was lost: start the server again"
            )
        if not self.ready.is_set():
            self._stores.prepare()
            # A walk of the garbage collector through all of MLflow would stop every request.
            gc.collect()
            gc.freeze()
            self._learn_outcomes()
            self.ready.set()
        with self._database.reading() as session:
            active = session.scalars(select(Job).where(Job.state.in_(ACTIVE)).order_by(Job.queue).limit(1000)).all()
        for job in active:
            self._watch(job)
        self._start_queued()

    def _learn_outcomes(self) -> None:
        """Fill in what an earlier version of the server did not keep of the fine-tunes that it ran."""
        unknown = select(Job).where(Job.state == JobState.COMPLETE, Job.outcome.is_(None))
        with self._database.reading() as session:
            jobs = session.scalars(unknown).all()
        for job in jobs:
            self._note_progress(job, at_once=True)
            self._processes.pop(job.id, None)

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
        logger.info("Job %d starts, attempt %d", job.id, attempt)
        stores = [f"study={job_study(job)}", f"hydra.sweeper.storage={literal(self._stores.studies)}"]
        stores.append(f"tracking.uri={literal(self._stores.tracking.uri)}")
        try:
            with self._database.reading() as session:
                dataset = None if job.dataset_id is None else session.get(Dataset, job.dataset_id)
            overrides = launch_overrides(job, None if dataset is None else dataset.name, self._choices)
            self._process(job.id).start(attempt, [*overrides, *stores], self._environment(job))
        except (LorahydraError, OSError) as error:
            logger.error("Job %d cannot be started: %s", job.id, error)
            failure = f"it cannot be started: {error}"
            self._change(job, JobState.FAILED, ended=time.time(), attempt_started=None, failure=failure)

    def _environment(self, job: Job) -> dict[str, str]:
        """Variables of the study: whatever holds the user's data stays in the server's folder, where it is deleted."""
        cache = cache_folder(self._folder.parent, job.dataset_id)
        return {**job.environment, DATA_CACHE: str(cache), "TMPDIR": str(self._folder / str(job.id) / TEMPORARY)}

    def _watch(self, job: Job) -> None:
        process = self._process(job.id)
        if process.lives():
            if job.state == JobState.CANCELLING:
                self._end(job, process)
            elif job.state == JobState.STARTING:
                process.interrupted = None
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
            # It is started again, so the seconds that it may take begin again too.
            if self._change(job, JobState.STARTING, attempt_started=time.time()):
                self._launch(job, job.attempt)
            return
        process.kill(job.attempt)  # what a killed study may have left behind
        self._note_progress(job, at_once=True)
        self._ended(job, process, end)

    def _end(self, job: Job, process: JobProcess) -> None:
        if process.interrupted is None:
            process.interrupted = time.monotonic()
            process.interrupt(job.attempt)
        elif time.monotonic() - process.interrupted > SECONDS_TO_STOP:
            process.kill(job.attempt)

    def _ended(self, job: Job, process: JobProcess, end: Mapping[str, Any] | None) -> None:
        state, failure = _next_state(job, end)
        if state is not JobState.QUEUED:
            left = self._left(job, process, state)
            if left is None:
                return
            state = left
        at = time.time() if job.attempt_started is None else process.last_sign() if end is None else end["at"]
        seconds = job.seconds_before + max(0.0, at - (job.attempt_started or at))
        over: dict[str, Any] = {"attempt_started": None, "seconds_before": seconds, "current": None, "stage": None}
        over |= {"ended": at, "failure": failure}
        if state is JobState.QUEUED:
            over |= {"ended": None, "crashes": job.crashes + 1}
            logger.warning("Job %d was killed and continues (%d of %d times)", job.id, job.crashes + 1, MOST_CRASHES)
        if self._change(job, state, **over):
            self._processes.pop(job.id, None)
            self.wake()

    def _left(self, job: Job, process: JobProcess, state: JobState) -> JobState | None:
        """The state of a job that has ended by itself, but whose study may go on in other processes; None if it does.

        Of a study that is not complete these are ended.
        """
        now, study = time.monotonic(), job_study(job)
        if process.survivors_since is None:
            process.survivors_since = now
        elif now - process.survivors_looked < PROGRESS_SECONDS:
            return None
        process.survivors_looked, waited = now, now - process.survivors_since
        try:
            found = self._stores.state(study) if state is JobState.COMPLETE else None
            if job.state == JobState.CANCELLING and found is not State.COMPLETE:
                state = JobState.CANCELLED  # its process has ended well, and others have not
            elif found is State.RUNNING:
                return None
            elif found is State.INTERRUPTED and job.crashes < MOST_CRASHES:
                return JobState.QUEUED  # they were killed as well
            left = self._stores.end_workers(study, at_once=waited > SECONDS_FOR_WORKERS)
        except LorahydraError as error:
            logger.warning("Job %d: it is not known whether its workers have ended: %s", job.id, error)
            left = 0 if sqlite_file(self._stores.studies) else None
        return state if left == 0 or waited > SECONDS_TO_GIVE_UP else None

    def _note_progress(self, job: Job, *, at_once: bool = False) -> None:
        """Keep the study's progress in the job's row, so that a list of jobs takes one query."""
        process, now = self._process(job.id), time.monotonic()
        if not at_once and now - process.looked < PROGRESS_SECONDS:
            return
        process.looked = now
        try:
            progress = self._stores.progress(job_study(job))
            if progress is None:
                return
            run = job.study_run or self._stores.study_run(job_study(job))
        except LorahydraError as error:
            logger.warning("Job %d: its progress cannot be read: %s", job.id, error)
            return
        values = {"study_run": run, **{name: getattr(progress, name) for name in PROGRESS_COLUMNS}}
        changed = {name: value for name, value in values.items() if value != getattr(job, name)}
        if "current" in changed:
            changed["current_started"] = time.time()
        if changed:
            with self._database.changing() as session:
                session.execute(update(Job).where(Job.id == job.id).values(**changed))

    def _change(self, job: Job, state: JobState, **values: Any) -> bool:
        """Set a job's state, unless a request has set it meanwhile, which the next look takes into account."""
        with self._database.changing() as session:
            statement = update(Job).where(Job.id == job.id, Job.state == job.state).values(state=state, **values)
            changed = bool(cast("CursorResult[Any]", session.execute(statement)).rowcount)
        if changed:
            job.state = state
            logger.info("Job %d: %s", job.id, state)
        return changed

    def _process(self, job_id: int) -> JobProcess:
        return self._processes.setdefault(job_id, JobProcess(self._folder / str(job_id)))


def _next_state(job: Job, end: Mapping[str, Any] | None) -> tuple[JobState, str | None]:
    """The state of a job whose process has ended in this way, and why it failed."""
    code, failure = (None, None) if end is None else (end["exit_code"], end["failure"])
    if code == 0:
        return JobState.COMPLETE, None
    if job.state == JobState.CANCELLING:
        return JobState.CANCELLED, None
    if code is not None and 0 < code != INTERRUPTED:  # a negative one is the signal that killed it
        return JobState.FAILED, failure or f"exit code {code}"
    if job.crashes >= MOST_CRASHES:
        return JobState.FAILED, f"its process was killed {job.crashes + 1} times, perhaps because memory ran out"
    return JobState.QUEUED, None


def study_name(job_id: int, word: str | None = None) -> str:
    """Name of the study of a new job; `word` is that of the server, if others may use its stores."""
    return f"fine-tune-{job_id}" if word is None else f"fine-tune-{word}-{job_id}"


def job_study(job: Job) -> str:
    """Name of a job's study."""
    return job.study or study_name(job.id)
