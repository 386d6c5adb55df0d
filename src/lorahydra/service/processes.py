"""A job's process: who runs it, whether it lives, how it is started and ended.

A job's folder has these files beside those of the study:

| file | |
|---|---|
| `job.json` | what to run; the server writes it before it starts an attempt |
| `lock` | held by the job's processes as long as one of them lives, whatever happens to the server |
| `process.json` | who holds it, and for which attempt |
| `ended.json` | how an attempt ended |
| `log.txt` | the output of the study |
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorahydra.utils.files import atomic_file, writing
from lorahydra.utils.processes import has_its_number

__all__ = ["LOG_FILE", "NICENESS", "JobProcess", "hold", "read_json", "start_program", "write_json"]

JOB_FILE, LOCK_FILE, PROCESS_FILE = "job.json", "lock", "process.json"
ENDED_FILE, LOG_FILE = "ended.json", "log.txt"
POLL_SECONDS = 0.05
NICENESS = 5
"""Of studies and checks: requests come first, and would wait while others use all cores."""


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a small file, of which readers see all or what was there before."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="ascii")


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote; empty if the file cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def start_program(folder: Path, log_file: str, *command: str) -> subprocess.Popen[bytes]:
    """Start a Python module in a session of its own, in a folder that also has its log."""
    with (folder / log_file).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


@contextmanager
def hold(folder: Path, seconds: float) -> Iterator[int | None]:
    """Hold the job's lock. It may take some seconds: a process that checks whether it is held takes it for an instant.

    Yields:
        Its file descriptor, which child processes may inherit to hold the lock as well; None if others hold it.
    """
    descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    deadline = time.monotonic() + seconds
    try:
        while not (is_held := _try_lock(descriptor)) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        yield descriptor if is_held else None
    finally:
        # Closed and not unlocked, so that a child that still lives keeps the lock.
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@dataclass(frozen=True)
class End:
    """How an attempt ended."""

    exit_code: int
    """A negative one is the signal that killed the study."""
    failure: str | None
    """The last line of the study, if it failed."""
    at: float
    """When, in s since the epoch."""


class JobProcess:
    """The process of one job, seen from the server; another server may have started it.

    Args:
        folder: The job's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._child: subprocess.Popen[bytes] | None = None
        self._attempt = 0

    def start(self, attempt: int, overrides: list[str], environment: Mapping[str, str]) -> None:
        """Start an attempt as a process in a session of its own, and do not wait for it.

        An attempt that is started twice runs once.

        Raises:
            OutputError: The folder cannot be written.
        """
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        job = {"attempt": attempt, "overrides": overrides, "environment": dict(environment)}
        write_json(self.folder / JOB_FILE, job)
        with writing(self.folder):
            self._child = start_program(self.folder, LOG_FILE, "lorahydra.service.job", str(self.folder))
        self._attempt = attempt

    def was_started(self, attempt: int) -> bool:
        """Whether this server has started the attempt."""
        return self._attempt == attempt

    def is_starting(self) -> bool:
        """Whether the process that this server started has not exited."""
        return self._child is not None and self._child.poll() is None

    def lives(self) -> bool:
        """Whether the job's lock is held."""
        try:
            descriptor = os.open(self.folder / LOCK_FILE, os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            if not _try_lock(descriptor):
                return True
            # Not left to `close`: a child that is just being started may have a copy of the descriptor.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            return False
        finally:
            os.close(descriptor)

    def end(self, attempt: int) -> End | None:
        """How an attempt ended; None if it has not ended, or could not say so."""
        content = read_json(self.folder / ENDED_FILE)
        if content.get("attempt") != attempt:
            return None
        return End(int(content["exit_code"]), content.get("failure"), float(content["at"]))

    def last_sign(self) -> float:
        """When the study last wrote to its log, in s since the epoch: about when it ended, if it could not say so."""
        try:
            return min(time.time(), (self.folder / LOG_FILE).stat().st_mtime)
        except OSError:
            return time.time()

    def interrupt(self, attempt: int) -> None:
        """Ask all its processes to end, as Ctrl-C does."""
        self._signal(attempt, signal.SIGINT)

    def kill(self, attempt: int) -> None:
        """End all its processes at once."""
        for pid in self._signal(attempt, signal.SIGKILL):
            # A process that left the group is still in the session.
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)

    def _signal(self, attempt: int, number: int) -> set[int]:
        """Signal the attempt's process group; returns the processes of its session."""
        import psutil

        leader = self._leader(attempt)
        if leader is None:
            return set()
        members = {pid for pid in psutil.pids() if _leader_of(pid) == leader}
        if members:
            # As long as one member lives, the group's number belongs to no other.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(leader, number)
        return members

    def _leader(self, attempt: int) -> int | None:
        """The session's number, which is that of its first process; None if it may belong to another by now."""
        content = read_json(self.folder / PROCESS_FILE)
        if content.get("attempt") != attempt:
            return self._child.pid if self._child is not None and self._attempt == attempt else None
        return int(content["pid"]) if has_its_number(content) else None


def _leader_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None
