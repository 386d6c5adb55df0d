from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.programs import ProgramRunner, RunningProgram

from lorahydra.errors import ConfigError, TrackingError
from lorahydra.names import State
from lorahydra.tracking import TrackedRun, find_unsent, sync

StartRun = Callable[..., TrackedRun]

TRIAL = """
import signal
import sys
from pathlib import Path
from lorahydra.config.schema import TrackingConfig
from lorahydra.names import Kind
from lorahydra.tracking import start_run

uri, folder = sys.argv[1:]
run = start_run(TrackingConfig(uri=uri), output_dir=Path(folder), kind=Kind.SINGLE, run_name="killed")
for step in range(200):
    run.metrics({"train/loss": step / 7}, step=step)
run.text("x", "x.txt")
print(run.run_id, flush=True)
signal.pause()
"""


@pytest.fixture
def trial(uri: str, tmp_path: Path, programs: ProgramRunner) -> RunningProgram:
    """A process that has logged all it wants to, and goes on living."""
    process = programs.start(["-c", TRIAL, uri, str(tmp_path / "out")], tmp_path)
    process.wait_for(lambda: "\n" in process.output)
    return process


@pytest.mark.slow
def test_killed_trial_is_completed_but_not_while_it_lives(trial: RunningProgram, client: Any, tmp_path: Path) -> None:
    run_id = trial.output.strip()
    alive = sync(tmp_path)
    assert (alive.runs, alive.busy) == ([], [tmp_path / "out"])
    assert client.get_run(run_id).info.status == "RUNNING"

    trial.kill()
    trial.wait()
    [sent] = sync(tmp_path).runs
    assert (sent.run_id, sent.run_name, sent.interrupted) == (run_id, "killed", True)
    stored = client.get_run(run_id)
    assert (stored.info.status, stored.data.tags["lorahydra.state"]) == ("KILLED", "interrupted")
    points = client.get_metric_history(run_id, "train/loss")
    assert [(point.step, point.value) for point in points] == [(step, step / 7) for step in range(200)]
    assert stored.info.end_time >= points[-1].timestamp
    assert [file.path for file in client.list_artifacts(run_id)] == ["x.txt"]
    assert sync(tmp_path).runs == []


def leave_unsent(start: StartRun, monkeypatch: pytest.MonkeyPatch) -> tuple[str, int]:
    """A run whose store went away after its start."""
    from mlflow import MlflowClient

    def away(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("away")

    with monkeypatch.context() as patch:
        for name in ("log_batch", "log_artifact", "log_inputs", "set_terminated"):
            patch.setattr(MlflowClient, name, away)
        with start(retry_seconds=0.0) as run:
            run.params({"a": 1})
            run.metrics({"m": 1.0}, step=5)
            run.text("text", "d/t.txt")
            unsent = run.finish(State.FAILED, "TrainingError: NaN")
    return run.run_id, unsent


def test_what_was_left_is_sent_once(
    start: StartRun, client: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run_id, unsent = leave_unsent(start, monkeypatch)
    assert unsent == 5
    [sent] = sync(tmp_path / "out").runs
    assert (sent.run_id, sent.entries, sent.interrupted) == (run_id, 5, False)
    stored = client.get_run(run_id)
    assert stored.info.status == "FAILED"
    assert stored.data.tags["lorahydra.failure"] == "TrainingError: NaN"
    assert (stored.data.params, stored.data.metrics) == ({"a": "1"}, {"m": 1.0})
    assert [file.path for file in client.list_artifacts(run_id, "d")] == ["d/t.txt"]
    assert sync(tmp_path / "out").runs == []
    assert not (tmp_path / "out" / "tracking").exists()


def test_output_folder_may_be_moved(
    start: StartRun, client: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run_id, _ = leave_unsent(start, monkeypatch)
    shutil.move(tmp_path / "out", tmp_path / "elsewhere")
    assert sync(tmp_path / "elsewhere").runs[0].run_id == run_id
    assert [file.path for file in client.list_artifacts(run_id, "d")] == ["d/t.txt"]


def test_store_may_have_moved(start: StartRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    run_id, _ = leave_unsent(start, monkeypatch)
    shutil.move(tmp_path / "mlflow.db", tmp_path / "moved.db")
    with pytest.raises(TrackingError, match="does not exist"):
        sync(tmp_path)
    assert not (tmp_path / "mlflow.db").exists(), "no empty store is made"
    with pytest.raises(ConfigError, match="is not supported"):
        sync(tmp_path, "foo://x")
    sync(tmp_path, f"sqlite:///{tmp_path}/moved.db")
    assert MlflowClient(f"sqlite:///{tmp_path}/moved.db").get_run(run_id).info.status == "FAILED"


def test_run_that_the_store_does_not_have(
    start: StartRun, client: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mlflow_database: Path
) -> None:
    run_id, _ = leave_unsent(start, monkeypatch)
    [folder] = find_unsent(tmp_path)
    client.delete_run(run_id)
    with pytest.raises(TrackingError, match=f"restore it with `mlflow runs restore --run-id {run_id}`"):
        sync(tmp_path)
    shutil.copy(mlflow_database, tmp_path / "other.db")
    with pytest.raises(TrackingError, match=f"has no run {run_id}"):
        sync(tmp_path, f"sqlite:///{tmp_path}/other.db")
    client.restore_run(run_id)
    assert folder.exists()
    assert len(sync(tmp_path).runs) == 1


def test_run_that_ends_while_it_is_looked_for(
    start: StartRun, client: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its process is alive when its spool is listed, and has sent and deleted all when it is opened."""
    run = start()
    unsent = find_unsent(tmp_path)
    run.finish(State.COMPLETE)
    monkeypatch.setattr(importlib.import_module("lorahydra.tracking.sync"), "find_unsent", lambda root: unsent)
    result = sync(tmp_path)
    assert (result.runs, result.busy) == ([], [])
    assert not (tmp_path / "out" / "tracking").exists()
    assert client.get_run(run.run_id).info.status == "FINISHED"
