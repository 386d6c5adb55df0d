"""How long the launcher of hydra-submitit-launcher waits for its jobs.

It asks each job for its result, one after another. submitit raises an error for a job that was cancelled or killed, and
does so while the others still run; and where Slurm keeps no accounts (`sacct`), it waits for such a job for ever.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hydra.core.utils import JobReturn, JobStatus

from lorahydra.errors import StudyError, last_line

__all__ = ["waiting_for_jobs"]

SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_BETWEEN_QUESTIONS = 10.0
"""Time between two questions to Slurm."""


@contextmanager
def waiting_for_jobs(wait: bool, has_ended: Callable[[], bool]) -> Iterator[None]:
    """Inside, `Job.results()` returns what became of the job, an error included, once nothing more comes from it.

    Args:
        wait: False: it returns at once, and the jobs go on.
        has_ended: Whether the study has its winner, so that the jobs that are left need not be waited for.
    """
    from submitit.core import core

    jobs: Any = core.Job
    original = jobs.results

    def results(job: Any) -> list[Any]:
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


def _is_gone(job: Any) -> bool:
    """Whether a job neither runs nor waits in the queue."""
    if job.__class__.__name__ != "SlurmJob":
        return bool(job.done())
    command = ["squeue", "--noheader", "--format=%T", f"--jobs={job.job_id}"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.SubprocessError):
        return False
    if asked.returncode:
        return "Invalid job id" in asked.stderr  # otherwise the controller did not answer
    return not asked.stdout.strip()


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
