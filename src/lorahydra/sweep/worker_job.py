"""The job of a launcher that is a worker of a study: it starts the program again as a worker, and waits for its end.

Slurm's jobs and Ray's tasks unpickle a `WorkerJob`, so this module imports neither torch nor Optuna. The worker is a
process of its own, as with `hydra/launcher=joblib`: it does not depend on what a launcher has done to the process of
the job, and Hydra can run in it once more.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from lorahydra.config.environment import register_resolver
from lorahydra.errors import StudyError
from lorahydra.sweep.gpus import gpu_for
from lorahydra.sweep.workers import SECONDS_TO_END, STORAGE, WORKER, WORKERS
from lorahydra.utils.databases import shown
from lorahydra.utils.processes import cores

__all__ = ["RESTARTS", "WorkerJob"]

RESTARTS = 3
"""How often a job starts its worker again after the kernel has killed it."""

# Launchers compose the configuration again in the job's process, before they call anything in it.
register_resolver()


@dataclass(frozen=True)
class WorkerJob:
    """What a launcher calls in each of its jobs; it may be written to a file that others can read.

    Raises:
        StudyError: When called: the worker ended with an error; `exit_code` is that of the worker.
    """

    arguments: tuple[str, ...]
    """The program and its arguments, without the interpreter, which is that of the job."""
    folder: str
    """Working folder; where it does not exist, the worker runs in that of the job."""
    storage: str
    """Address of the study's database, without a password: one comes in the environment, or from `~/.pgpass`."""
    count: int
    """Number of workers."""
    environment: Mapping[str, str]
    """More variables of the worker."""
    is_local: bool
    """Whether all workers run on the machine that started them, so that they share its cores and GPUs."""

    def __call__(self, _: DictConfig) -> None:
        """Run the worker; the job's number is that of Hydra's job."""
        number = int(HydraConfig.get().job.num)
        for attempt in range(RESTARTS + 1):
            code, said = self._run(number)
            if code == 0:
                return
            if code != -signal.SIGKILL or attempt == RESTARTS:
                break
            # Its successor closes the trial that it had. When memory runs out, the kernel sends SIGKILL.
            print(f"worker {number + 1} of the study was killed by signal {-code}", flush=True)  # noqa: T201
        raise StudyError(f"worker {number + 1} of the study ended with exit code {code}: {said}", exit_code=code)

    def _run(self, number: int) -> tuple[int, str]:
        """The exit code of the worker, and the last line that it wrote."""
        worker = subprocess.Popen(
            [sys.executable, *self.arguments],
            cwd=self.folder if Path(self.folder).is_dir() else None,
            env=self._environment(number),
            # The system closes it when this process dies: then the worker stops as by Ctrl-C.
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        assert worker.stdout is not None
        last: deque[str] = deque(maxlen=1)
        try:
            for line in worker.stdout:
                print(line, end="", flush=True)  # noqa: T201
                if line.strip():
                    last.append(line.strip())
            return worker.wait(), "".join(last).removeprefix("lorahydra: ")
        finally:
            # submitit ends this process by an exception when Slurm has announced the time limit.
            _end(worker)

    def _environment(self, number: int) -> dict[str, str]:
        environment = os.environ | dict(self.environment) | {WORKER: str(number + 1), WORKERS: str(self.count)}
        inherited = os.environ.get(STORAGE, "")
        environment[STORAGE] = inherited if _without_password(inherited) == self.storage else self.storage
        share = str(max(1, cores() // self.count)) if self.is_local else os.environ.get("SLURM_CPUS_PER_TASK")
        if share and not environment.get("OMP_NUM_THREADS"):
            # Threads of several torch processes on the same cores slow each other by far more than their number.
            environment["OMP_NUM_THREADS"] = share
        if self.is_local and "model.device" not in " ".join(self.arguments):
            environment |= gpu_for(number, self.count)
        return environment


def _end(worker: subprocess.Popen[str]) -> None:
    """Let a worker that still runs give its trial back."""
    if worker.poll() is None:
        worker.terminate()
        try:
            worker.wait(timeout=SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
    for pipe in (worker.stdin, worker.stdout):
        if pipe is not None:
            pipe.close()


def _without_password(url: str) -> str:
    return shown(url).replace(":***@", "@")
