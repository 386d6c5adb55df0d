"""A job's process: who runs it, whether it lives, how it is started and ended.

A job's folder has these files beside those of the study:

| file | |
|---|---|
| `job.json` | what to run; the server writes it before it starts an attempt |
| `lock` | held by the job's processes as long as one of them lives, whatever happens to the server |
| `process.json` | who holds it, and for which attempt |
| `ended.json` | how an attempt ended |
| `log.txt` | the output of the study |
| `tmp` | the study's temporary files, which a killed one leaves |
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
from pathlib import Path
from typing import Any

from lorahydra.service.folders import TEMPORARY
from lorahydra.utils.files import atomic_file, writing
from lorahydra.utils.processes import has_its_number

__all__ = ["ENDED_FILE", "LOG_FILE", "NICENESS", "JobProcess", "hold", "read_json", "start_program", "write_json"]

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
    with suppress(OSError, ValueError):
        content = json.loads(path.read_text(encoding="ascii"))
        return content if isinstance(content, dict) else {}
    return {}


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
    """Hold the job's lock; others that check whether it is held take it for an instant, so it may take some seconds.

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


class JobProcess:
    """The process of the job in a folder, seen from the server; another server may have started it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.interrupted: float | None = None
        """When it was asked to end."""
        self.looked = float("-inf")
        """When its progress was read."""
        self.survivors_since: float | None = None
        self.survivors_looked = 0.0
        """Since when other processes go on with its study although it has ended, and when that was looked up."""
        self._child: subprocess.Popen[bytes] | None = None
        self._attempt = 0

    def start(self, attempt: int, overrides: list[str], environment: Mapping[str, str]) -> None:
        """Start an attempt as a process in a session of its own; one that is started twice runs once."""
        job = {"attempt": attempt, "overrides": overrides, "environment": dict(environment)}
        write_json(self.folder / JOB_FILE, job)
        with writing(self.folder):
            (self.folder / TEMPORARY).mkdir(exist_ok=True)
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

    def end(self, attempt: int) -> dict[str, Any] | None:
        """How an attempt ended, as `lorahydra.service.job` writes it; None if it has not ended, or could not say so."""
        content = read_json(self.folder / ENDED_FILE)
        return content if content.get("attempt") == attempt else None

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
        members = set()
        for pid in psutil.pids():
            with suppress(ProcessLookupError, PermissionError):
                if os.getsid(pid) == leader:
                    members.add(pid)
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
