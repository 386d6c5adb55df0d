from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lorahydra.cli.sync import sync
from lorahydra.config.schema import TrackingConfig
from lorahydra.errors import OutputError, TrackingError
from lorahydra.names import Kind, State
from lorahydra.tracking import start_run


@pytest.fixture(autouse=True)
def _in_own_folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def leave_unsent(folder: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> str:
    from mlflow import MlflowClient

    def away(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("away")

    config = TrackingConfig(system_metrics=False, retry_seconds=0.0)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", away)
        with start_run(config, output_dir=Path(folder), kind=Kind.SINGLE, run_name="demo") as run:
            run.metrics({"a": 1.0})
            unsent = run.finish(State.COMPLETE)
    assert unsent > 0
    assert f"run `lorahydra sync {folder}` when the store is back" in caplog.messages[-1]
    return run.run_id


def test_nothing_to_send() -> None:
    result = CliRunner().invoke(sync)
    assert (result.exit_code, result.output) == (0, "Nothing to send in outputs, multirun.\n")


def test_usual_folders_are_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ids = [leave_unsent(folder, monkeypatch, caplog) for folder in ("outputs/a", "multirun/b/0")]
    result = CliRunner().invoke(sync)
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        f"Sent 3 entries of run demo ({run_id}) to sqlite:///{tmp_path}/mlflow.db." for run_id in ids
    ]
    assert CliRunner().invoke(sync).output.startswith("Nothing to send")


def test_one_fault_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow import MlflowClient

    first = leave_unsent("outputs/a", monkeypatch, caplog)
    second = leave_unsent("outputs/b", monkeypatch, caplog)
    MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").delete_run(first)
    result = CliRunner().invoke(sync, ["outputs"])
    assert f"Sent 3 entries of run demo ({second})" in result.output
    assert isinstance(result.exception, TrackingError)
    assert f"run {first} (demo) was deleted" in str(result.exception)


def test_folder_that_is_not_there() -> None:
    result = CliRunner().invoke(sync, ["nowhere"])
    assert isinstance(result.exception, OutputError)
    assert "the folder nowhere does not exist" in str(result.exception)
