"""Worker processes of one command, and those that are killed."""

from __future__ import annotations

import signal
import subprocess

import pytest

from lorahydra.errors import StudyError
from lorahydra.sweep import workers as workers_module


def shell(command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(["sh", "-c", command], text=True)


@pytest.mark.parametrize("room", [True, False])
def test_a_killed_worker_is_replaced_while_there_is_a_trial_for_it(room: bool) -> None:
    workers = [shell("exit 0"), shell("kill -9 $$")]
    killed, heard, started = workers[1], [], []

    def died(pid: int, number: int) -> bool:
        heard.append((pid, number))
        return room

    def start(number: int) -> subprocess.Popen[str]:
        started.append(number)
        return shell("exit 0")

    workers_module._wait(workers, died, start)
    assert heard == [(killed.pid, signal.SIGKILL)]
    assert started == ([1] if room else [])
    assert (workers[1] is not killed) is room


def test_a_worker_that_fails_or_is_interrupted_ends_the_study() -> None:
    for command, error in (("exit 3", StudyError), ("exit 130", KeyboardInterrupt)):
        with pytest.raises(error):
            workers_module._wait([shell(command)], lambda *_: True, lambda _: shell("exit 0"))
