"""Whether a process lives."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from lorahydra.utils import processes
from lorahydra.utils.processes import has_its_number, is_alive, is_here, this_process


@pytest.fixture
def child() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)


def test_this_process() -> None:
    process = json.loads(json.dumps(this_process()))
    assert process["pid"] == os.getpid()
    assert is_here(process)
    assert is_alive(process)
    assert has_its_number(process)


def test_dead_and_zombie(child: subprocess.Popen[bytes]) -> None:
    process = {**this_process(), "pid": child.pid, "started": processes._started(child.pid)}
    assert is_alive(process)
    child.kill()
    # Ended, and not yet waited for: a zombie.
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert is_alive(process) is False
    assert has_its_number(process)
    child.communicate()
    assert is_alive(process) is False
    assert has_its_number(process), "nobody else has it"


def test_a_number_that_another_process_has_now() -> None:
    process = this_process()
    process["started"] -= 100
    assert is_alive(process) is False
    assert not has_its_number(process)


@pytest.mark.parametrize("name", ["boot", "namespace"])
def test_another_machine_or_container_cannot_be_seen(name: str) -> None:
    for process in (
        this_process() | {name: "other"},
        {key: value for key, value in this_process().items() if key != name},
    ):
        assert not is_here(process)
        assert is_alive(process) is None
        assert not has_its_number(process)


def test_nothing_known() -> None:
    assert is_alive({}) is None
    assert not has_its_number({})
    here = this_process()
    assert is_alive(here | {"pid": 2**22 + 1, "started": None}) is False
    del here["pid"]
    assert is_alive(here) is False
