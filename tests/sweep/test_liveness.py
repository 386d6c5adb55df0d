"""Whether the process of a trial lives."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from lorahydra.sweep import liveness
from lorahydra.sweep.liveness import is_here, lives, this_worker


def worker_of(process: subprocess.Popen[bytes]) -> dict[str, object]:
    return {**this_worker(), "pid": process.pid, "started": liveness._started(process.pid)}


@pytest.fixture
def process() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)


def test_this_process() -> None:
    worker = json.loads(json.dumps(this_worker()))
    assert worker["pid"] == os.getpid()
    assert is_here(worker)
    assert lives(worker)


def test_dead_and_zombie(process: subprocess.Popen[bytes]) -> None:
    worker = worker_of(process)
    assert is_here(worker)
    assert lives(worker)
    process.kill()
    # Ended, and not yet waited for: a zombie.
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not lives(worker)
    process.communicate()
    assert not lives(worker)


def test_a_number_that_another_process_has_now() -> None:
    worker = this_worker()
    assert not lives(worker | {"started": worker["started"] - 100})


@pytest.mark.parametrize("name", ["boot", "namespace"])
def test_another_machine(name: str) -> None:
    assert not is_here(this_worker() | {name: "other"})
    assert not is_here({key: value for key, value in this_worker().items() if key != name})


def test_nothing_known() -> None:
    assert not is_here({})
    assert not lives({})
    assert not lives({"pid": 2**22 + 1, "started": None})
