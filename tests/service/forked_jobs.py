"""`lorahydra serve` whose fine-tunes are forked from a process that has imported everything: some 7 s of CPU less each.

`python forked_jobs.py serve OPTION...`, started by `ProgramRunner`. A copy of this process, made before the server has
threads, forks the jobs, and each job forks its study. They are sessions of their own, hold their locks and outlive the
server as programs that are started do.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.support import forking

from lorahydra.service import processes

SIZE = 1 << 20
_run = subprocess.run


class ForkedJob:
    """What the service uses of `subprocess.Popen`."""

    forker: socket.socket
    lock = threading.Lock()

    def __init__(self, command: Sequence[str], *, stdout: Any, cwd: Any, **_: Any) -> None:
        self.pid: int = self._ask({"argv": command[1:], "cwd": str(cwd), "output": stdout.name})

    def poll(self) -> int | None:
        code: int | None = self._ask(self.pid)
        return code

    def _ask(self, request: Any) -> Any:
        with self.lock:
            self.forker.send(json.dumps(request).encode())
            return json.loads(self.forker.recv(SIZE))


def _fork_jobs(server: socket.socket) -> None:
    """Answer requests until the server has ended."""
    exit_codes: dict[int, int] = {}
    while content := server.recv(SIZE):
        request = json.loads(content)
        answer: int | None
        if isinstance(request, dict):
            answer = os.fork()
            if answer == 0:
                os.setsid()
                server.close()
                subprocess.run = _forked_study  # type: ignore[assignment]
                _become(request["argv"], request["cwd"], request["output"], dict(os.environ))
        else:
            if request not in exit_codes:
                pid, status = os.waitpid(request, os.WNOHANG)
                if pid:
                    exit_codes[pid] = os.waitstatus_to_exitcode(status)
            answer = exit_codes.get(request)
        server.send(json.dumps(answer).encode())


def _forked_study(command: Sequence[str], *, env: dict[str, str], **_: Any) -> SimpleNamespace:
    """What a job uses of `subprocess.run`; its lock is inherited as any open file is."""
    pid = os.fork()
    if pid == 0:
        subprocess.run = _run
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        _become(command[1:], os.getcwd(), "/proc/self/fd/1", env)  # noqa: PTH109
    return SimpleNamespace(returncode=os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def _become(command: Sequence[str], cwd: str, output: str, env: dict[str, str]) -> None:
    files = {"input": os.devnull, "output": output, "errors": output}
    options = dict.fromkeys(("hidden", "die_at_write", "pause_at"))
    forking._become({**files, **options, "argv": command, "cwd": cwd, "env": env})


def main() -> None:
    """Become the server."""
    ForkedJob.forker, server = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        ForkedJob.forker.close()
        _fork_jobs(server)
        os._exit(0)
    server.close()
    processes.subprocess = SimpleNamespace(Popen=ForkedJob, DEVNULL=None)  # type: ignore[assignment]
    sys.argv[0] = "lorahydra"
    runpy.run_module("lorahydra", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
