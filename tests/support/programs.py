"""Runs Python programs in processes forked from one that has imported everything: about 0.3 s of CPU each, not 5 s."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import psutil
import pytest
from tests.support import forking
from tests.support.waiting import SECONDS, holds

REPOSITORY = Path(__file__).resolve().parents[2]
TRAIN = str(REPOSITORY / "train.py")


def environment(**more: str) -> dict[str, str]:
    """Environment of a program: ours without settings of lorahydra and MLflow, with one thread, and `more`."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("LORA_", "MLFLOW_"))}
    # Several torch processes on few cores would wait for each other.
    return kept | {"OMP_NUM_THREADS": "1"} | more


class RunningProgram:
    """A program that was started, with its output and errors in files.

    Attributes:
        pid: Process number.
        returncode: Exit code once the program is known to have ended; negative: the signal that ended it.
    """

    def __init__(self, runner: ProgramRunner, command: Sequence[str], pid: int, output: Path, errors: Path) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._runner, self._command, self._output, self._errors = runner, command, output, errors

    @property
    def output(self) -> str:
        """Its output so far."""
        return self._output.read_text("utf-8")

    @property
    def errors(self) -> str:
        """Its output on stderr so far."""
        return self._errors.read_text("utf-8")

    def send_signal(self, sent: signal.Signals) -> None:
        """Send a signal, unless the process has ended; if it has paused, it goes on."""
        if self.poll() is None:
            os.kill(self.pid, sent)
            os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """Kill it, as the kernel does when memory runs out."""
        self.send_signal(signal.SIGKILL)

    def poll(self) -> int | None:
        """The exit code, if it has ended."""
        if self.returncode is None:
            self.returncode = self._runner._ask({"poll": self.pid})
        return self.returncode

    def wait(self, seconds: float = SECONDS) -> int:
        """The exit code, once it has ended; the test fails if that takes too long."""
        if not holds(lambda: self.poll() is not None, seconds):
            self._give_up("goes on for too long")
        assert self.returncode is not None
        return self.returncode

    def wait_for(self, condition: Callable[[], bool], seconds: float = SECONDS) -> None:
        """Wait until a condition holds; the test fails if the program ends first."""

        def reached() -> bool:
            if condition():
                return True
            # It may have got there just before its end.
            if self.poll() is not None and not condition():
                self._give_up("ended before it got there")
            return False

        if not holds(reached, seconds):
            self._give_up("did not get there")

    def wait_until_paused(self) -> None:
        """Wait until it is where it was told to pause."""
        self.wait_for(lambda: psutil.Process(self.pid).status() == psutil.STATUS_STOPPED)

    def finish(self, seconds: float = SECONDS) -> subprocess.CompletedProcess[str]:
        """Wait for the end."""
        code = self.wait(seconds)
        return subprocess.CompletedProcess(self._command, code, self.output, self.errors)

    def _give_up(self, what: str) -> NoReturn:
        self.kill()
        pytest.fail(f"{self._command} {what} ({self.returncode}): {self.output}\n{self.errors}")


class ProgramRunner:
    """The process that forks, which may be used from several threads.

    Args:
        modules: Modules to import before the first fork, besides those that every sweep imports.
    """

    def __init__(self, modules: Sequence[str] = ()) -> None:
        self._process = subprocess.Popen(
            [sys.executable, forking.__file__, *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        self._lock = threading.Lock()
        self._folder = tempfile.TemporaryDirectory()
        self._started = 0

    def start(
        self,
        command: Sequence[str],
        cwd: Path,
        env: Mapping[str, str] | None = None,
        *,
        output: Path | None = None,
        terminal: str | None = None,
        hidden: Path | None = None,
        die_at_write: int | None = None,
        pause_at: str | None = None,
    ) -> RunningProgram:
        """Start Python with `command`: a file, `-m` and a module, or `-c` and code, and their arguments.

        Variables that libraries read while they are imported have the values of the first start.

        Args:
            command: The command.
            cwd: The working folder.
            env: All its variables; `environment()` by default.
            output: File to which output and errors are appended, instead of one for each.
            terminal: Path of a terminal for input, output and errors.
            hidden: Folder that is empty for it, as on another machine; only root can do that.
            die_at_write: The process is killed just before this write to its database. If it reaches its end, it prints
                the number of its writes.
            pause_at: The process stops before it logs a message that begins so, or renames a file to a path that ends
                so, until it gets a signal.
        """
        with self._lock:
            self._started += 1
            name = Path(self._folder.name, str(self._started))
        files = (output, output) if output else (name.with_suffix(".output"), name.with_suffix(".errors"))
        for file in files:
            file.touch()
        request = {
            "argv": list(command),
            "cwd": str(cwd),
            "input": terminal or os.devnull,
            "output": terminal or str(files[0]),
            "errors": terminal or str(files[1]),
            "env": dict(environment() if env is None else env),
            "hidden": hidden and str(hidden),
            "die_at_write": die_at_write,
            "pause_at": pause_at,
        }
        return RunningProgram(self, command, int(self._ask({"start": request})), *files)

    def run(self, command: Sequence[str], cwd: Path, *args: Any, **options: Any) -> subprocess.CompletedProcess[str]:
        """Start, and wait for the end."""
        return self.start(command, cwd, *args, **options).finish()

    def close(self) -> None:
        """End it, and all programs that still run."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()
        self._folder.cleanup()

    def _ask(self, request: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())
