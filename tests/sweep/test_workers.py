"""Worker processes of one command, and those that are killed."""

from __future__ import annotations

import shlex
import signal
from pathlib import Path

import pytest

from lorahydra.errors import StudyError
from lorahydra.sweep.current import context
from lorahydra.sweep.workers import WorkerPool, worker_arguments


def test_arguments_of_a_worker_hold_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others can read a command line, and the files in which launchers keep their jobs."""
    store = "postgresql://me:secret@host/studies"
    monkeypatch.setenv("LORAHYDRA_STUDY_STORE", "")
    monkeypatch.setattr(context, "arguments", ["train.py", "-m", f"hydra.sweeper.storage={store}", "seed=1"])
    for given in ([], [f"++hydra.sweeper.storage='{store}'"]):
        arguments = worker_arguments("s", store, given)
        assert "secret" not in " ".join(arguments)
        assert arguments[:3] == ["train.py", "-m", "seed=1"]
        monkeypatch.setattr(context, "arguments", ["train.py", "-m", *given, "seed=1"])
    monkeypatch.setattr(context, "arguments", None)  # of a LoRATuner
    monkeypatch.setenv("LORAHYDRA_TRACKING_STORE", "")
    assert "secret" not in " ".join(worker_arguments("s", store, ["tracking.uri='http://me:secret@host'"]))


@pytest.mark.parametrize("room", [True, False])
def test_a_killed_worker_is_replaced_while_there_is_a_trial_for_it(room: bool, tmp_path: Path) -> None:
    started = tmp_path / "started"
    script = (
        f"echo $LORAHYDRA_WORKER $$ >> {shlex.quote(str(started))}; [ $(grep -c ^2 {shlex.quote(str(started))}) = 1 ]"
    )
    told = []

    def replaces(pid: int, number: int) -> bool:
        told.append((pid, number))
        return room

    WorkerPool(["sh", "-c", f"{script} && [ $LORAHYDRA_WORKER = 2 ] && kill -9 $$; exit 0"], 2, replaces).run()
    second = [int(pid) for worker, pid in map(str.split, started.read_text().splitlines()) if worker == "2"]
    assert told == [(second[0], signal.SIGKILL)]
    assert len(second) == 1 + room


def test_a_worker_that_fails_or_is_interrupted_ends_the_study() -> None:
    command = "echo 'lorahydra: why'; exit 3"
    with pytest.raises(StudyError, match="a worker of the study ended with exit code 3: why") as caught:
        WorkerPool(["sh", "-c", command], 1, lambda *_: True).run()
    assert caught.value.exit_code == 3
    with pytest.raises(KeyboardInterrupt):
        WorkerPool(["sh", "-c", "exit 130"], 1, lambda *_: True).run()
