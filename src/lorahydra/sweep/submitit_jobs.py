"""The jobs of hydra-submitit-launcher: which ones Slurm has for a study, and how long the launcher waits for them.

A study remembers its job arrays, because they outlive the command that has placed them. The next command waits for
them and places no others. When the study is cancelled, the jobs that have not started yet are removed from the queue.

The launcher asks each job for its result, one after another. submitit raises an error for a job that was cancelled or
killed, and does so while the others still run; and where Slurm keeps no accounts (`sacct`), it waits for such a job for
ever.
"""

from __future__ import annotations

import logging
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any

import optuna
from hydra.core.utils import JobReturn, JobStatus

from lorahydra.errors import StudyError, last_line
from lorahydra.utils.processes import is_alive, is_here, this_process

__all__ = ["PENDING", "end_jobs", "jobs_of", "remember_job", "wait_for_orphans", "waiting_for_jobs"]

logger = logging.getLogger("lorahydra.sweep")

ARRAYS = "lorahydra.arrays"
"""User attribute of a study: the arrays of jobs that were placed for it. Each has its number, the folder of its
scripts, which no other cluster has for the same number, and the process that waits for it, if one does."""
PENDING = "PENDING"
"""Slurm's state of a job that waits in the queue."""
SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_BETWEEN_QUESTIONS = 10.0
"""Time between two questions to Slurm."""
SECONDS_TO_ANSWER = 20
"""How long it may take to answer."""
SECONDS_OF_SILENCE = 600
"""After so many seconds without an answer it is no longer waited for; another controller takes over in two minutes."""
COMPLETING, SECONDS_TO_COMPLETE = "COMPLETING", 300
"""Slurm's state of a job that is being ended, or that is going to be queued again, and how long it normally lasts."""


@contextmanager
def waiting_for_jobs(wait: bool, has_ended: Callable[[], bool], placed: Callable[[Any], None]) -> Iterator[None]:
    """Inside, `Job.results()` returns what became of the job, an error included, once nothing more comes from it.

    Args:
        wait: False: it returns at once, and the jobs go on.
        has_ended: Whether the study has its winner, so that the jobs that are left need not be waited for.
        placed: Is told each job before it is waited for.
    """
    from submitit.core import core

    jobs: Any = core.Job
    original = jobs.results

    def results(job: Any) -> list[Any]:
        placed(job)
        if not wait:
            return [JobReturn(status=JobStatus.COMPLETED)]
        asked = time.monotonic()
        while not job.paths.result_pickle.exists():
            if has_ended():
                return [JobReturn(status=JobStatus.COMPLETED)]
            if time.monotonic() - asked > SECONDS_BETWEEN_QUESTIONS or job.__class__.__name__ == "LocalJob":
                asked = time.monotonic()
                if _is_gone(job) and not job.paths.result_pickle.exists():
                    return [_failed(StudyError(f"job {job.job_id} was ended from outside: {_end_of_log(job)}"))]
            time.sleep(SECONDS_BETWEEN_LOOKS)
        try:
            returned: list[Any] = original(job)
        except Exception as error:  # what the job raised is text in an error of submitit
            return [_failed(StudyError(f"job {job.job_id} failed: {last_line(str(error))}"))]
        return returned

    jobs.results = results
    try:
        yield
    finally:
        jobs.results = original


def remember_job(study: optuna.Study, job: Any, *, waits: bool) -> None:
    """Keep the array of a job with the study; `waits` says whether this process waits for its end."""
    if job.__class__.__name__ != "SlurmJob":
        return
    array = job.job_id.partition("_")[0]
    known = study.user_attrs.get(ARRAYS, [])
    if any(one["array"] == array for one in known):
        return
    folder = job.paths.get_first_id_independent_folder(job.paths._folder)
    this = {"array": array, "scripts": str(folder), "waits": this_process() if waits else None}
    study.set_user_attr(ARRAYS, [*(one for one in known if _states(one) != {}), this])


def jobs_of(study: optuna.Study, *, orphans: bool = False) -> dict[str, str] | None:
    """The state of each job that Slurm has for the study, by its number; None if Slurm does not answer.

    With `orphans`, only those whose command was killed on this machine while it waited for them.
    """
    arrays = study.user_attrs.get(ARRAYS, [])
    if orphans:
        arrays = [one for one in arrays if one["waits"] and _was_killed(one["waits"])]
    found = [_states(one) for one in arrays]
    return None if None in found else {number: state for one in found if one for number, state in one.items()}


def end_jobs(study: optuna.Study, *, running: bool = False) -> int | None:
    """Take the study's jobs out of Slurm's queue, and with `running` end those that run.

    Returns:
        How many jobs Slurm had for the study; None if it did not answer.
    """
    jobs = jobs_of(study)
    ending = [number for number, state in (jobs or {}).items() if running or state == PENDING]
    if ending:
        logger.info("Study %s: %d jobs are taken from the cluster", study.study_name, len(ending))
        # A job that has started meanwhile gives its trial back, when it sees that the study was cancelled.
        only = [] if running else [f"--state={PENDING}"]
        with suppress(OSError, subprocess.SubprocessError):
            subprocess.run(["scancel", *only, *ending], capture_output=True, timeout=SECONDS_TO_ANSWER, check=False)
    return None if jobs is None else len(jobs)


def wait_for_orphans(study: optuna.Study, has_ended: Callable[[], bool]) -> None:
    """Wait until Slurm has no job any more that a killed command has placed, or until the study has ended.

    Raises:
        StudyError: Slurm does not answer for minutes.
    """
    answered = time.monotonic()
    while (jobs := jobs_of(study, orphans=True)) != {}:
        asked = time.monotonic()
        if jobs is not None:
            answered = asked
        elif asked - answered > SECONDS_OF_SILENCE:
            raise StudyError(
                f"Slurm does not answer whether it still has jobs of study {study.study_name}: start the command again "
                "when squeue works",
                exit_code=3,
            )
        while time.monotonic() - asked < SECONDS_BETWEEN_QUESTIONS:
            if has_ended():
                return
            time.sleep(SECONDS_BETWEEN_LOOKS)


def _was_killed(process: Mapping[str, Any]) -> bool:
    """Whether a process of this machine is gone; it may have ended with the machine."""
    return is_alive(process) is False or (not is_here(process) and process["host"] == socket.gethostname())


def _states(array: Mapping[str, Any]) -> dict[str, str] | None:
    """The state of each job of an array; None if Slurm does not answer."""
    jobs = _squeue(array["array"])
    if jobs is None:
        return None
    return {number: state for number, state, _, script in jobs if script.startswith(f"{array['scripts']}/")}


def _squeue(number: str) -> list[list[str]] | None:
    """Number, state, end and script of a job, or of each of an array; None if Slurm does not answer.

    Those that Slurm has forgotten are left out, and those that have ended on a node that cannot be cleared.
    """
    command = ["squeue", "--noheader", "--array", "--format=%i|%T|%e|%o", f"--jobs={number}"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_TO_ANSWER, check=False)
    except FileNotFoundError:
        return []  # this machine has no Slurm any more
    except (OSError, subprocess.SubprocessError):
        return None
    if asked.returncode:
        return [] if "Invalid job id" in asked.stderr else None
    jobs = [line.split("|", 3) for line in asked.stdout.split("\n")[:-1]]
    return [job for job in jobs if not (job[1] == COMPLETING and _was_long_ago(job[2]))]


def _was_long_ago(end: str) -> bool:
    """Whether the end of a job, in squeue's words, is so long ago that it hangs."""
    with suppress(ValueError):  # N/A
        return (datetime.now() - datetime.fromisoformat(end)).total_seconds() > SECONDS_TO_COMPLETE
    return False


def _is_gone(job: Any) -> bool:
    """Whether a job neither runs nor waits in the queue."""
    return bool(job.done()) if job.__class__.__name__ != "SlurmJob" else _squeue(job.job_id) == []


def _end_of_log(job: Any) -> str:
    """The last line that a job has logged."""
    try:
        log = job.paths.stderr.read_text(errors="replace")
    except OSError:
        return f"it has no log ({job.paths.stderr})"
    return last_line(log) or f"see {job.paths.stdout}"


def _failed(error: Exception) -> JobReturn:
    job = JobReturn(status=JobStatus.FAILED)
    job.return_value = error
    return job
