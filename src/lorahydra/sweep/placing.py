"""Workers of a study that a Hydra launcher places: on a cluster by Slurm or Ray, or by any other plugin.

The launcher is asked once and gets one job for each worker (`lorahydra.sweep.worker_job`). A worker takes trials from
the study's database until none is left, so no worker waits for another one, and the others do the work of one that is
lost. The last one names the winner. What the log of this process says of the trials comes from the database.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn

from lorahydra.config.compat import outcome
from lorahydra.errors import LorahydraError, StudyError, last_line
from lorahydra.names import Stage
from lorahydra.sweep.cancelling import cancel, cancelled_with
from lorahydra.sweep.catalog import is_ending
from lorahydra.sweep.compat import storage_of
from lorahydra.sweep.settings import SweepSettings
from lorahydra.sweep.stages import begin_stage
from lorahydra.sweep.storage import address_of
from lorahydra.sweep.study_log import study_log
from lorahydra.sweep.study_store import RESULT, is_concluded
from lorahydra.sweep.submitit_jobs import end_jobs, jobs_of, remember_job, wait_for_orphans, waiting_for_jobs
from lorahydra.sweep.trial_queue import TrialQueue
from lorahydra.sweep.worker_job import WorkerJob
from lorahydra.sweep.workers import CANCELLED, PLACED, SECONDS_TO_END, places_elsewhere
from lorahydra.utils.files import DATA_CACHE
from lorahydra.utils.interrupts import EXIT_INTERRUPTED

__all__ = ["has_winner", "run_placed"]

logger = logging.getLogger("lorahydra.sweep")

SECONDS_BETWEEN_LOOKS = 1.0


def has_winner(queue: TrialQueue) -> bool:
    """Whether no trial is left and the winner is named."""
    return not queue.has_room() and is_concluded(queue.study.user_attrs.get(RESULT, {}), queue.records())


def run_placed(
    settings: SweepSettings, queue: TrialQueue, arguments: Sequence[str], count: int, close_dead: Callable[[], None]
) -> bool:
    """Let the launcher place workers until the study has its winner.

    Args:
        settings: Of the sweep; its launcher is used.
        queue: The study's trials.
        arguments: The program of a worker and its arguments, without the interpreter.
        count: Most workers.
        close_dead: Closes the trials of workers that have died.

    Returns:
        Whether the workers have ended; False if they go on by themselves (`hydra.sweeper.wait=false`).

    Raises:
        StudyError: The launcher cannot place workers, or all workers have failed.
        KeyboardInterrupt: The study was cancelled.
    """
    launcher = settings.config.hydra.launcher
    begun_with = cancelled_with(queue.study)
    while not has_winner(queue):
        if settings.wait and _waited_for_others(queue, close_dead):
            if cancelled_with(queue.study) != begun_with:
                raise KeyboardInterrupt
            continue
        left = queue.n_trials - queue.finished() - queue.others()
        if left <= 0 and queue.others():
            return True  # processes that were started otherwise run the last trials
        workers = max(1, min(count, left))
        environment = {PLACED: "1", CANCELLED: begun_with}
        if DATA_CACHE in os.environ:  # Ray does not pass the environment on, and rows are deleted there only
            environment[DATA_CACHE] = os.environ[DATA_CACHE]
        storage = (address_of(storage_of(queue.study)) or "").replace(":***@", "@")
        job = WorkerJob(
            tuple(arguments), str(Path.cwd()), storage, workers, environment, not places_elsewhere(launcher)
        )
        if places_elsewhere(launcher) and not queue.others():
            begin_stage(queue.study, Stage.WAITING)
        with study_log(queue) if settings.wait else nullcontext(), _cancelled_by_interrupt(queue):
            jobs = _launch(settings, job, queue)
        if not settings.wait:
            logger.info(
                "Study %s: %d workers are queued and go on without this process", queue.study.study_name, workers
            )
            return False
        close_dead()
        if cancelled_with(queue.study) != begun_with:
            raise KeyboardInterrupt
        _check_ends(queue, jobs)
    return True


def _waited_for_others(queue: TrialQueue, close_dead: Callable[[], None]) -> bool:
    """Wait for workers of a command that was killed, or for processes that run the last trials; False if none is left.

    More workers would have to share the trials with them, or would find none.
    """
    jobs = jobs_of(queue.study, orphans=True)
    orphans = jobs != {}
    if not orphans and (queue.has_room() or not _others_end(queue)):
        return False
    if jobs is None:
        logger.warning("Slurm does not answer whether it still has jobs of study %s; waiting", queue.study.study_name)
    else:
        logger.info("Study %s goes on in workers that were started before; waiting for them", queue.study.study_name)
    if orphans and not queue.others():
        begin_stage(queue.study, Stage.WAITING)
    with study_log(queue), _cancelled_by_interrupt(queue):
        if orphans:
            wait_for_orphans(queue.study, lambda: has_winner(queue))
        else:
            while _others_end(queue) and not has_winner(queue):
                time.sleep(SECONDS_BETWEEN_LOOKS)
                close_dead()
    close_dead()
    return True


def _others_end(queue: TrialQueue) -> bool:
    """Whether other processes run trials, or name the winner."""
    return bool(queue.others()) or is_ending(queue.study)


def _launch(settings: SweepSettings, job: WorkerJob, queue: TrialQueue) -> Sequence[JobReturn]:
    config, study = settings.config, queue.study

    def has_ended() -> bool:
        return has_winner(queue)

    def placed(job: Any) -> None:
        remember_job(study, job, waits=settings.wait)

    name = config.hydra.launcher["_target_"].rpartition(".")[2]
    # The folders 0, 1, … are those of trials, and the settings of a worker are those of the study.
    own = [r"hydra.sweep.subdir=workers/${hydra.job.num}", "hydra.output_subdir=null"]
    launcher = Plugins.instance().instantiate_launcher(
        hydra_context=settings.hydra_context, task_function=job, config=config
    )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report to its makers
    logger.info("%s places %d workers", name, job.count)
    is_submitit = "submitit" in type(launcher).__module__
    with waiting_for_jobs(settings.wait, has_ended, placed) if is_submitit else nullcontext():
        try:
            jobs: Sequence[JobReturn] = launcher.launch([own] * job.count, initial_job_idx=0)
        except LorahydraError:
            raise
        except Exception as error:  # of any plugin, and of whatever it calls
            logger.debug("Launcher", exc_info=True)
            raise StudyError(f"the launcher {name} cannot run workers: {_said(error)}", exit_code=3) from error
    if settings.wait and has_ended():
        end_jobs(study)  # those that have not begun find nothing to do
    return jobs


@contextmanager
def _cancelled_by_interrupt(queue: TrialQueue) -> Iterator[None]:
    """Ctrl-C ends the workers, wherever they are."""
    try:
        yield
    except KeyboardInterrupt:
        logger.warning("Ending the workers of study %s", queue.study.study_name)
        cancel(queue.study)
        end_jobs(queue.study)
        deadline = time.monotonic() + SECONDS_TO_END
        while queue.others() and time.monotonic() < deadline:
            time.sleep(0.5)
        raise


def _check_ends(queue: TrialQueue, jobs: Sequence[JobReturn]) -> None:
    """Go on if a worker has ended well; the others may have been killed.

    Raises:
        StudyError: All of them have failed.
        KeyboardInterrupt: All of them were interrupted.
    """
    ends = [outcome(job) for job in jobs]
    errors = [end for end in ends if isinstance(end, BaseException)]
    for error in errors:
        logger.warning("%s", error)
    if has_winner(queue) or len(errors) < len(ends):
        return
    codes = [getattr(error, "exit_code", None) for error in errors]
    if all(code == EXIT_INTERRUPTED for code in codes):
        raise KeyboardInterrupt
    worst: Any = next((error for error, code in zip(errors, codes, strict=True) if code in (2, 3)), errors[0])
    code = worst.exit_code if getattr(worst, "exit_code", None) in (2, 3) else 3
    raise StudyError(f"all workers of the study have ended: {_said(worst)}", exit_code=code)


def _said(error: BaseException) -> str:
    return last_line(str(error)) or type(error).__name__
