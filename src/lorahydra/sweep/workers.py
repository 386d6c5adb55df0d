"""Several trials at once on this machine: worker processes that share the study.

Each is the same program with the same arguments, on the same study, as if it had been started by hand; so a worker
takes its next trial when it has finished one, and nobody waits for the slowest of a batch.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from lorahydra.errors import ConfigError, StudyError
from lorahydra.sweep.current import WORKER, own_arguments
from lorahydra.sweep.gpus import gpu_for
from lorahydra.utils.interrupts import EXIT_INTERRUPTED, raise_if_interrupted

if TYPE_CHECKING:
    from lorahydra.sweep.study_sweeper import StudySweeper

__all__ = ["is_worker", "run_workers", "workers_wanted"]

logger = logging.getLogger("lorahydra.sweep")

STORAGE = "LORAHYDRA_STUDY_STORE"
SECONDS_TO_END = 60


def is_worker() -> bool:
    """Whether this process is a worker of another one."""
    return bool(os.environ.get(WORKER))


def workers_wanted(sweeper: StudySweeper) -> int:
    """Number of processes that run trials.

    Raises:
        ConfigError: Several are wanted where they cannot share the study, or by a launcher that cannot do it.
    """
    launcher = str(sweeper.config.hydra.launcher.get("_target_", ""))
    if is_worker():
        return 1
    if not launcher.endswith(("BasicLauncher", "JoblibLauncher")):
        raise ConfigError(f"a study cannot be run with the launcher {launcher}: use hydra/launcher=joblib or basic")
    if launcher.endswith("BasicLauncher"):
        if sweeper.n_jobs > 1:
            raise ConfigError(f"hydra.sweeper.n_jobs={sweeper.n_jobs} needs hydra/launcher=joblib")
        return 1
    jobs = sweeper.n_jobs if sweeper.n_jobs > 1 else int(sweeper.config.hydra.launcher.n_jobs)
    jobs = (os.cpu_count() or 1) if jobs < 0 else max(1, jobs)
    if jobs > 1 and sweeper.storage is None:
        raise ConfigError("hydra.sweeper.storage=null keeps the study in memory, and several workers cannot share it")
    return min(jobs, int(sweeper.n_trials))


Died = Callable[[int, int], bool]
"""Hears the process number of a worker that was killed and the signal; says whether another one takes its place."""


def run_workers(count: int, study: str, storage: str | None, overrides: Sequence[str], died: Died) -> None:
    """Start worker processes and wait until the study has no trial left for them.

    Args:
        count: Number of processes.
        study: The study.
        storage: Its database.
        overrides: Of this run, for where this program was not started by a command.
        died: Asked for each worker that was killed.

    Raises:
        StudyError: A worker ended with an error; the others have been stopped.
    """
    # By the environment, which other users of the machine cannot read as they can a command line.
    os.environ[STORAGE] = storage or ""
    store = f"hydra.sweeper.storage=${{oc.env:{STORAGE}}}"
    command = [*_own_command(overrides), store, "hydra/launcher=basic", "hydra.sweeper.n_jobs=1", f"study='{study}'"]
    logger.info("Starting %d workers", count)
    workers = [_start(command, number, count) for number in range(count)]
    try:
        _wait(workers, died, lambda number: _start(command, number, count))
    finally:
        _stop(workers)


def _own_command(overrides: Sequence[str]) -> list[str]:
    """This program with its arguments; where it is more than one experiment, `lorahydra train`."""
    arguments = own_arguments()
    if arguments is None:
        return [sys.executable, "-m", "lorahydra", "train", "-m", *overrides]
    program, *rest = arguments
    own = [word for word in rest if not word.startswith(("study=", "hydra/launcher=", "hydra.launcher."))]
    start = ["-m", "lorahydra", "train"] if program.startswith("lorahydra") else [program]
    return [sys.executable, *start, *own]


def _start(command: Sequence[str], number: int, count: int) -> subprocess.Popen[str]:
    cores = max(1, (os.cpu_count() or 1) // count)
    # Threads of several torch processes on the same cores slow each other by far more than their number.
    environment = os.environ | {
        WORKER: str(number + 1),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(cores)),
    }
    if "model.device" not in " ".join(command):
        environment |= gpu_for(number, count)
    worker = subprocess.Popen(
        command,
        env=environment,
        # Closed by the system when this process dies: then the worker stops as by Ctrl-C.
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        # Ctrl-C reaches this process, which passes it on once.
        start_new_session=True,
    )
    threading.Thread(target=_echo, args=(worker, number + 1), daemon=True).start()
    return worker


def _echo(worker: subprocess.Popen[str], number: int) -> None:
    assert worker.stdout is not None
    for line in worker.stdout:
        sys.stderr.write(f"[worker {number}] {line}")
        worker.last_line = line.strip()  # type: ignore[attr-defined]


def _wait(workers: list[subprocess.Popen[str]], died: Died, start: Callable[[int], subprocess.Popen[str]]) -> None:
    """Wait for all workers; one that is started in the place of another takes its place in `workers`."""
    working = set(range(len(workers)))
    while working:
        raise_if_interrupted()
        for number in sorted(working):
            worker = workers[number]
            try:
                worker.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                continue
            if worker.returncode < 0:
                # Such as the kernel's SIGKILL, when memory ran out.
                logger.warning("Worker %d of the study was killed by signal %d", number + 1, -worker.returncode)
                if died(worker.pid, -worker.returncode):
                    workers[number] = start(number)
                    continue
            _check_end(worker)
            working.remove(number)


def _check_end(worker: subprocess.Popen[str]) -> None:
    if worker.returncode == EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    if worker.returncode > 0:
        said = getattr(worker, "last_line", "").removeprefix("lorahydra: ")
        error: Any = StudyError(f"a worker of the study ended with exit code {worker.returncode}: {said}")
        error.exit_code = worker.returncode if worker.returncode in (2, 3) else StudyError.exit_code
        raise error


def _stop(workers: list[subprocess.Popen[str]]) -> None:
    for worker in workers:
        if worker.poll() is None:
            worker.send_signal(signal.SIGINT)
    for worker in workers:
        try:
            worker.wait(timeout=SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
        if worker.stdin is not None:
            worker.stdin.close()
