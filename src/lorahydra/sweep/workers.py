"""Several trials at once: worker processes that share the study, and the pool of those on this machine.

Each worker is the same program with the same arguments, on the same study, as if it had been started by hand. So it
takes its next trial when it has finished one, and no worker waits for the slowest of a batch. Workers elsewhere are
placed by a launcher (`lorahydra.sweep.placing`).
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from lorahydra.config.showing import password_in_environment
from lorahydra.errors import ConfigError, StudyError
from lorahydra.sweep.current import context
from lorahydra.sweep.gpus import gpu_for
from lorahydra.utils.interrupts import EXIT_INTERRUPTED, interrupted, raise_if_interrupted
from lorahydra.utils.processes import at_end_of_input, cores

if TYPE_CHECKING:
    from lorahydra.sweep.settings import SweepSettings

__all__ = [
    "CANCELLED",
    "PLACED",
    "SECONDS_TO_END",
    "STORAGE",
    "WORKER",
    "WORKERS",
    "WorkerPool",
    "is_placed",
    "is_worker",
    "needs_placing",
    "places_elsewhere",
    "watch_parent",
    "worker_arguments",
    "workers_of_study",
    "workers_wanted",
]

logger = logging.getLogger("lorahydra.sweep")

WORKER, WORKERS, STORAGE = "LORAHYDRA_WORKER", "LORAHYDRA_WORKERS", "LORAHYDRA_STUDY_STORE"
"""Environment variables of a worker: its number, from 1, the number of workers, and the study's database."""
PLACED, CANCELLED = "LORAHYDRA_PLACED", "LORAHYDRA_CANCELLED"
"""Whether a launcher has placed it, and the study's mark of its last cancellation before the workers were started."""
SECONDS_TO_END = 60
LOCAL = ("LocalLauncher", "JoblibLauncher", "BasicLauncher")
"""Ends of the classes of launchers whose jobs all run on this machine."""

Replaces = Callable[[int, int], bool]
"""Is told the process number of a worker that was killed and the signal; says whether another one takes its place."""


def is_worker() -> bool:
    """Whether this process is a worker of another one."""
    return bool(os.environ.get(WORKER))


def is_placed() -> bool:
    """Whether this process is a worker that a launcher has placed: the process that asked for it may be gone."""
    return is_worker() and bool(os.environ.get(PLACED))


def workers_of_study() -> int:
    """How many processes of one command share the study, this one among them."""
    return int(os.environ.get(WORKERS) or 1)


def workers_wanted(settings: SweepSettings) -> int:
    """Number of processes that run trials.

    Raises:
        ConfigError: Several are wanted where they cannot share the study, or from a launcher that cannot start them.
    """
    launcher = settings.config.hydra.launcher
    name = str(launcher.get("_target_", ""))
    if is_worker():
        return 1
    if not settings.wait and not name.endswith(".SlurmLauncher"):
        raise ConfigError(
            "hydra.sweeper.wait=false needs hydra/launcher=submitit_slurm: other workers end with this process"
        )
    if name.endswith("BasicLauncher"):
        if settings.n_jobs > 1:
            raise ConfigError(f"hydra.sweeper.n_jobs={settings.n_jobs} needs hydra/launcher=joblib")
        return 1
    jobs = settings.n_jobs
    if jobs == 1 and name.endswith("JoblibLauncher"):
        jobs = cores() if int(launcher.n_jobs) < 0 else max(1, int(launcher.n_jobs))
    if (jobs > 1 or needs_placing(settings)) and settings.storage is None:
        raise ConfigError("hydra.sweeper.storage=null keeps the study in memory, and several workers cannot share it")
    return min(jobs, settings.n_trials)


def needs_placing(settings: SweepSettings) -> bool:
    """Whether trials run in workers that the launcher places, even if there is only one."""
    name = str(settings.config.hydra.launcher.get("_target_", ""))
    return not is_worker() and not name.endswith(("BasicLauncher", "JoblibLauncher"))


def places_elsewhere(launcher: DictConfig) -> bool:
    """Whether the jobs of a launcher may run on other machines."""
    name = str(launcher.get("_target_", ""))
    if name.endswith(".RayLauncher"):
        address = OmegaConf.select(launcher, "ray.init.address") or os.environ.get("RAY_ADDRESS")
        return bool(address) and address != "local"
    return not name.endswith(LOCAL)


def worker_arguments(study: str, storage: str | None, overrides: Sequence[str]) -> list[str]:
    """The program of a worker, without the interpreter: this program, or `lorahydra train` if it is no experiment."""
    # Other users of the machine can read a command line, but not the environment of a process.
    os.environ[STORAGE] = storage or ""
    if context.arguments is None:
        # Hydra's record of the overrides has the values of the variables that they name.
        start = ["-m", "lorahydra", "train", "-m", *_elsewhere(password_in_environment(overrides))]
    else:
        program, *rest = context.arguments
        start = ["-m", "lorahydra", "train"] if program.startswith("lorahydra") else [program]
        start += _elsewhere(rest)
    shared = [f"hydra.sweeper.storage=${{oc.env:{STORAGE}}}", f"study='{study}'"]
    return [*start, *shared, "hydra/launcher=basic", "hydra.sweeper.n_jobs=1"]


def _elsewhere(words: Sequence[str]) -> list[str]:
    """The arguments without those that a worker gets otherwise."""
    given = ("study=", "hydra/launcher=", "hydra.launcher.", "hydra.sweeper.wait=", "hydra.sweeper.storage=")
    return [word for word in words if not word.lstrip("+~").startswith(given)]


class WorkerPool:
    """Worker processes that run until the study has no trial left for them.

    Args:
        command: Program and arguments of every worker.
        count: Number of workers.
        replaces: Is asked when a worker was killed.
    """

    def __init__(self, command: Sequence[str], count: int, replaces: Replaces) -> None:
        self._command = command
        self._count = count
        self._replaces = replaces
        self._workers: dict[int, subprocess.Popen[str]] = {}
        self._echoes: dict[int, threading.Thread] = {}
        self._last_lines: dict[int, str] = {}
        """The last output of each process, by process number."""

    def run(self) -> None:
        """Start the workers and wait for their end.

        Raises:
            StudyError: A worker ended with an error; the others have been stopped.
        """
        logger.info("Starting %d workers", self._count)
        try:
            for number in range(self._count):
                self._workers[number] = self._start(number)
            self._wait()
        finally:
            self._stop()

    def _start(self, number: int) -> subprocess.Popen[str]:
        # Threads of several torch processes on the same cores slow each other by far more than their number.
        environment = os.environ | {
            WORKER: str(number + 1),
            WORKERS: str(self._count),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, cores() // self._count)),
        }
        if "model.device" not in " ".join(self._command):
            environment |= gpu_for(number, self._count)
        worker = subprocess.Popen(
            self._command,
            env=environment,
            # The system closes it when this process dies: then the worker stops as by Ctrl-C.
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            # Ctrl-C reaches this process, which passes it on once.
            start_new_session=True,
        )
        echo = self._echoes[worker.pid] = threading.Thread(target=self._echo, args=(worker, number + 1), daemon=True)
        echo.start()
        return worker

    def _echo(self, worker: subprocess.Popen[str], number: int) -> None:
        assert worker.stdout is not None
        with worker.stdout as lines:
            for line in lines:
                sys.stderr.write(f"[worker {number}] {line}")
                self._last_lines[worker.pid] = line.strip()

    def _wait(self) -> None:
        working = set(self._workers)
        while working:
            raise_if_interrupted()
            for number in sorted(working):
                worker = self._workers[number]
                try:
                    worker.wait(timeout=0.2)
                except subprocess.TimeoutExpired:
                    continue
                if worker.stdin is not None:
                    worker.stdin.close()
                if worker.returncode < 0:
                    # The kernel sends SIGKILL when memory runs out.
                    logger.warning("Worker %d of the study was killed by signal %d", number + 1, -worker.returncode)
                    if self._replaces(worker.pid, -worker.returncode):
                        self._workers[number] = self._start(number)
                        continue
                self._check_end(worker)
                working.remove(number)

    def _check_end(self, worker: subprocess.Popen[str]) -> None:
        if worker.returncode == EXIT_INTERRUPTED:
            raise KeyboardInterrupt
        if worker.returncode > 0:
            self._echoes[worker.pid].join(timeout=5)
            said = self._last_lines.get(worker.pid, "").removeprefix("lorahydra: ")
            code = worker.returncode if worker.returncode in (2, 3) else None
            raise StudyError(f"a worker of the study ended with exit code {worker.returncode}: {said}", exit_code=code)

    def _stop(self) -> None:
        for worker in self._workers.values():
            if worker.poll() is None:
                worker.send_signal(signal.SIGINT)
        for worker in self._workers.values():
            try:
                worker.wait(timeout=SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
            if worker.stdin is not None:
                worker.stdin.close()


def watch_parent() -> None:
    """In a worker: stop as by Ctrl-C when the process that started it is gone."""
    if is_worker() and not sys.stdin.isatty():
        # A second interrupt would end it before it has given its trial back.
        at_end_of_input(lambda: None if interrupted() else os.kill(os.getpid(), signal.SIGINT))
