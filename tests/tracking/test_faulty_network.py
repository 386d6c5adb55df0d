"""Requests to a real MLflow server that fail on their way: everything is recorded once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import sqlalchemy
from tests.mlflow_proxy import FAULTS, FaultyProxy
from tests.mlflow_server import Server

from lorahydra.config.schema import TrackingConfig
from lorahydra.names import ADAPTER_DIR, Kind, State
from lorahydra.tracking import TrackedRun, operations, patience, register_model, start_run

pytestmark = [pytest.mark.service, pytest.mark.slow]


def record(config: TrackingConfig, folder: Path, name: str) -> TrackedRun:
    with start_run(config, output_dir=folder / "run", kind=Kind.TRIAL, run_name=name) as run:
        run.params({"r": 8})
        for step in range(50):
            run.metrics({"train/loss": 1 / (step + 1), "train/nan": float("nan"), "same": 1.0}, step=step)
        (folder / ADAPTER_DIR).mkdir()
        (folder / ADAPTER_DIR / "weights").write_text("x")
        run.artifact(folder / ADAPTER_DIR, ADAPTER_DIR)
        run.dataset("d", "0" * 36, "x.jsonl", 1, "training")
        run.trace(
            operations.trace(
                "judge", {"a": 1}, {"b": 2}, {}, previews=("a", "b"), assessments=None, ok=True, start_ns=1, end_ns=2
            )
        )
        assert run.finish(State.COMPLETE) == 0
    register_model(config, run.run_id, name.replace(" ", "-"), tags={})
    return run


@pytest.mark.parametrize("fault", FAULTS)
def test_everything_is_recorded_once(
    fault: str, server: Server, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setattr(patience, "LONGEST_PAUSE", 0.1)
    with FaultyProxy(server.port, fault).running() as proxy:
        config = TrackingConfig(uri=proxy.uri, experiment_name=f"e {fault}", system_metrics=False)
        run = record(config, tmp_path, f"run {fault}")
    assert {"POST /api/2.0/mlflow/runs/create", "POST /api/2.0/mlflow/runs/log-batch", "POST /v1/traces"} <= {
        *proxy.failed
    }
    engine = sqlalchemy.create_engine(database, poolclass=sqlalchemy.pool.NullPool)
    with engine.connect() as connection:

        def rows(text: str) -> list[tuple[object, ...]]:
            values = {"run": run.run_id, "experiment": int(run.experiment_id)}
            return [tuple(row) for row in connection.execute(sqlalchemy.text(text), values)]

        of_run = "WHERE run_uuid = :run"
        assert rows("SELECT run_uuid, status FROM runs WHERE experiment_id = :experiment") == [(run.run_id, "FINISHED")]
        points = Counter(rows(f"SELECT key, step FROM metrics {of_run}"))
        expected = {(key, step) for key in ("train/loss", "train/nan", "same") for step in range(50)}
        assert points == Counter(expected)
        assert rows(f"SELECT key, value FROM params {of_run}") == [("r", "8")]
        assert rows("SELECT count(*) FROM trace_info WHERE experiment_id = :experiment") == [(1,)]
        assert rows("SELECT count(*) FROM inputs WHERE destination_id = :run AND source_type = 'DATASET'") == [(1,)]
        assert rows("SELECT version FROM model_versions WHERE run_id = :run") == [(1,)]
