"""A real MLflow server on loopback that is killed in the middle of a run and started again."""

from __future__ import annotations

import logging
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.mlflow_server import Server
from tests.support.programs import ProgramRunner
from tests.support.waiting import wait_for

from lorahydra.config.schema import TrackingConfig
from lorahydra.errors import TrackingError
from lorahydra.names import ADAPTER_DIR, PREDICTIONS_FILE, Kind, State
from lorahydra.tracking import (
    TrackedRun,
    close_run,
    find_run,
    join_run,
    register_model,
    registered_name,
    start_run,
    sync,
    unfinished_children,
)

pytestmark = [pytest.mark.service, pytest.mark.slow]


@pytest.fixture(scope="module")
def stopped_server(programs: ProgramRunner, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(programs, tmp_path_factory.mktemp("server"))
    yield server
    server.kill()


@pytest.fixture
def server(stopped_server: Server) -> Server:
    stopped_server.start()
    return stopped_server


def begin(server: Server, folder: Path, retry_seconds: float = 60.0) -> TrackedRun:
    config = TrackingConfig(uri=server.uri, system_metrics=False, retry_seconds=retry_seconds)
    return start_run(config, output_dir=folder, kind=Kind.SINGLE, run_name="demo")


def log_part(run: TrackedRun, part: int) -> None:
    """One third of what a trial logs."""
    run.params({f"part{part}": part, "long": "x" * 10_000})
    for step in range(100 * part, 100 * (part + 1)):
        run.metrics({"train/loss": 1 / (step + 1), "train/nan": float("nan")}, step=step)
    run.text(f"{part}\n" * 1000, f"config/{part}.yaml")
    run.table(["prompt"], [["p"]] * part, PREDICTIONS_FILE)
    run.dataset(f"d{part}", "0" * 36, "x.jsonl", part, "training")
    run.tags({"part": str(part)})


def content(server: Server, run_id: str) -> dict[str, Any]:
    """All of a run that does not depend on when and where it ran."""
    from mlflow import MlflowClient

    client = MlflowClient(server.uri)
    run = client.get_run(run_id)
    points = client.get_metric_history(run_id, "train/loss")
    files = [file.path for name in ("config", "eval") for file in client.list_artifacts(run_id, name)]
    return {
        "loss": [(point.step, point.value) for point in points],
        "in order": points == sorted(points, key=lambda point: point.timestamp),
        "nan": len(client.get_metric_history(run_id, "train/nan")),
        "params": run.data.params,
        "tags": run.data.tags,
        "files": {name: server.get(f"/get-artifact?path={name}&run_uuid={run_id}") for name in files},
        "datasets": {used.dataset.name: used.dataset.profile for used in run.inputs.dataset_inputs},
        "status": run.info.status,
    }


@pytest.fixture(scope="module")
def undisturbed(stopped_server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    stopped_server.start()
    with begin(stopped_server, tmp_path_factory.mktemp("undisturbed")) as run:
        assert run.url == f"{stopped_server.uri}/#/experiments/{run.experiment_id}/runs/{run.run_id}"
        for part in range(3):
            log_part(run, part)
        assert run.finish(State.COMPLETE) == 0
    recorded = content(stopped_server, run.run_id)
    assert len(recorded["loss"]) == recorded["nan"] == 300
    assert len(recorded["files"]) == 4
    assert recorded["status"] == "FINISHED"
    return recorded


def arrived(server: Server, run: TrackedRun) -> bool:
    from mlflow import MlflowClient

    return bool(MlflowClient(server.uri).get_metric_history(run.run_id, "train/loss"))


def test_server_that_comes_back_in_time(
    server: Server, undisturbed: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="lorahydra")
    with begin(server, tmp_path) as run:
        log_part(run, 0)
        wait_for(lambda: arrived(server, run))
        server.kill()
        log_part(run, 1)
        wait_for(lambda: "cannot be reached" in caplog.text)
        server.start()
        log_part(run, 2)
        assert run.finish(State.COMPLETE) == 0
    assert content(server, run.run_id) == undisturbed
    levels = [(record.levelname, record.getMessage().split(": ")[0]) for record in caplog.records]
    assert levels == [
        ("WARNING", f"MLflow at {server.uri} cannot be reached"),
        ("INFO", f"MLflow at {server.uri} is back; sending what waited"),
    ]
    assert list(tmp_path.iterdir()) == []


def test_server_that_comes_back_too_late(server: Server, undisturbed: dict[str, Any], tmp_path: Path) -> None:
    from mlflow import MlflowClient

    with begin(server, tmp_path, retry_seconds=0.5) as run:
        log_part(run, 0)
        wait_for(lambda: arrived(server, run))
        server.kill()
        log_part(run, 1)
        log_part(run, 2)
        began = time.monotonic()
        unsent = run.finish(State.COMPLETE)
        assert time.monotonic() - began < 60, "MLflow itself would try for minutes"
    ended = time.time() * 1000
    with pytest.raises(TrackingError, match="connection refused"):
        sync(tmp_path)
    server.start()
    [sent] = sync(tmp_path).runs
    assert (sent.run_id, sent.entries, sent.interrupted) == (run.run_id, unsent, False)
    assert content(server, run.run_id) == undisturbed
    client = MlflowClient(server.uri)
    assert client.get_metric_history(run.run_id, "train/loss")[-1].timestamp <= ended
    assert client.get_run(run.run_id).info.end_time <= ended, "the times are those of the trial"
    assert list(tmp_path.iterdir()) == []


def test_study_on_a_server(server: Server, tmp_path: Path) -> None:
    """A parent with two handles, a child without a process, and the adapter in the registry."""
    from mlflow import MlflowClient

    config = TrackingConfig(uri=server.uri, system_metrics=False)
    parent = begin(server, tmp_path / "a")
    parent.tags({"lorahydra.study": 'it\'s "s"'})
    with join_run(config, output_dir=tmp_path / "b", run_id=parent.run_id) as joined:
        joined.metrics({"b": 1.0})
        joined.leave()
    child = MlflowClient(server.uri).create_run(
        parent.experiment_id, tags={"mlflow.parentRunId": parent.run_id, "lorahydra.trial_number": "3"}
    )
    [unfinished] = unfinished_children(config, parent.run_id)
    assert (unfinished.run_id, unfinished.trial_number) == (child.info.run_id, 3)
    close_run(config, unfinished.run_id, State.INTERRUPTED)
    assert unfinished_children(config, parent.run_id) == []
    assert parent.finish(State.COMPLETE) == 0
    assert find_run(config, {"lorahydra.study": 'it\'s "s"'}) == parent.run_id
    stored = MlflowClient(server.uri).get_run(parent.run_id)
    assert (stored.info.status, stored.data.metrics) == ("FINISHED", {"b": 1.0})


@pytest.mark.parametrize("direct", [False, True], ids=["through the server", "recorded in its database"])
def test_adapter_comes_back_from_the_registry(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direct: bool
) -> None:
    import mlflow

    uri = f"sqlite:///{server._folder}/mlflow.db" if direct else server.uri
    config = TrackingConfig(uri=uri, experiment_name=f"registry {direct} #1", system_metrics=False)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    with start_run(config, output_dir=tmp_path, kind=Kind.SINGLE, run_name="winner") as run:
        run.artifact(adapter, ADAPTER_DIR)
    name = registered_name(f"студия: {direct}")
    for _ in range(2):
        assert register_model(TrackingConfig(uri=server.uri), run.run_id, name, tags={"a": "it's"}) == "1"
    with start_run(config, output_dir=tmp_path, kind=Kind.SINGLE, run_name="without an adapter") as empty:
        pass
    with pytest.raises(TrackingError, match="has no artifact folder"):
        register_model(config, empty.run_id, "other", tags={})

    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    back = Path(mlflow.artifacts.download_artifacts(f"models:/{name}@champion", dst_path=str(tmp_path)))
    assert (back / "adapter_model.safetensors").read_bytes() == b"weights"
    shown = server.get(
        f"/model-versions/get-artifact?path=adapter_model.safetensors&name={urllib.parse.quote(name)}&version=1"
    )
    assert shown == b"weights"


def test_ui_on_a_sqlite_store_shows_the_artifacts(server: Server, tmp_path: Path) -> None:
    """What a trial wrote to the file itself, without the server."""
    config = TrackingConfig(
        uri=f"sqlite:///{server._folder}/mlflow.db", experiment_name="direct #1", system_metrics=False
    )
    with start_run(config, output_dir=tmp_path, kind=Kind.SINGLE, run_name="direct") as run:
        run.text("hello", "config/config.yaml")
    assert run.url is not None
    assert run.url.startswith("lorahydra ui --uri ")
    shown = server.get(f"/ajax-api/2.0/mlflow/artifacts/list?run_id={run.run_id}&path=config")
    assert b"config/config.yaml" in shown
    assert server.get(f"/get-artifact?path=config/config.yaml&run_uuid={run.run_id}") == b"hello"
