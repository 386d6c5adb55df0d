"""The set-up of docs/server.md: an MLflow server and the studies on PostgreSQL, artifacts through the server."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from tests.mlflow_server import Server
from tests.postgres import execute
from tests.support.models import scored_with
from tests.support.programs import TRAIN, ProgramRunner, environment
from tests.support.questions import write_questions
from tests.support.waiting import wait_for

from lorahydra.config.schema import TrackingConfig
from lorahydra.errors import TrackingError
from lorahydra.names import ADAPTER_DIR, Kind, State
from lorahydra.tracking import check_store, read_run, start_run
from lorahydra.tracking import database as database_module

pytestmark = [pytest.mark.service, pytest.mark.slow]

WEIGHTS = "adapter_model.safetensors"


def test_study(
    server: Server, postgresql: str, tiny_model: Path, tiny_encoder: Path, tmp_path: Path, programs: ProgramRunner
) -> None:
    import mlflow

    def client(*command: str) -> subprocess.CompletedProcess[str]:
        """Run Python as on a machine that knows the server's address and nothing else."""
        variables = environment(MLFLOW_TRACKING_URI=server.uri)
        return programs.run(command, tmp_path, variables, hidden=server.artifacts)

    server.artifacts.mkdir(exist_ok=True)
    write_questions(tmp_path / "rows.jsonl")
    done = client(
        TRAIN, "-m", "study=small", "hydra.sweeper.n_trials=2",
        "tracking=server", "tracking.system_metrics=false", f"hydra.sweeper.storage='{postgresql}'",
        "model=local", f"model.name_or_path={tiny_model}", "model.device=cpu", "training.max_steps=2",
        *scored_with(tiny_encoder), "evaluation.max_new_tokens=6", "data=local", "data.train_file=rows.jsonl",
        "hydra/sweeper/pruner=none",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {entry.name for entry in tmp_path.iterdir()} == {"rows.jsonl", "outputs"}, "all else is on the server"

    store = mlflow.MlflowClient(server.uri)
    experiment = store.get_experiment_by_name("lorahydra")
    assert experiment.artifact_location.startswith("mlflow-artifacts:")
    runs: list[Any] = list(store.search_runs([experiment.experiment_id], order_by=["start_time"]))
    [parent] = [run for run in runs if run.data.tags["lorahydra.kind"] == Kind.STUDY]
    trials = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(runs) == 3
    assert len(trials) == 2
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {run.data.tags["lorahydra.state"] for run in runs} == {State.COMPLETE}
    with sqlalchemy.create_engine(postgresql).connect() as connection:
        assert connection.exec_driver_sql("SELECT state FROM trials").scalars().all() == ["COMPLETE"] * 2

    outputs = tmp_path / "outputs" / "small"
    fetched = [
        Path(store.download_artifacts(trial.info.run_id, ADAPTER_DIR, str(tmp_path)), WEIGHTS).read_bytes()
        for trial in trials
    ]
    kept = [file.read_bytes() for file in (outputs.glob(f"*/{ADAPTER_DIR}/{WEIGHTS}"))]
    assert sorted(fetched) == sorted(kept)
    assert len(set(kept)) == 2
    stored = list(server.artifacts.rglob(WEIGHTS))
    assert sorted(file.read_bytes() for file in stored) == sorted(kept)

    mlflow.set_tracking_uri(server.uri)
    try:
        champion = mlflow.artifacts.download_artifacts("models:/lorahydra-small@champion", dst_path=str(tmp_path / "c"))
    finally:
        mlflow.set_tracking_uri(None)
    assert Path(champion, WEIGHTS).read_bytes() == (outputs / "best" / WEIGHTS).read_bytes()
    best = parent.data.tags["lorahydra.best_run"]
    assert store.get_model_version_by_alias("lorahydra-small", "champion").run_id == best

    checked = client("-m", "lorahydra", "reproduce", "--uri", server.uri, "--check", best)
    assert checked.returncode == 0, checked.stderr
    assert f"Run {best}" in checked.stdout


def fault(uri: str) -> str:
    with pytest.raises(TrackingError) as caught:
        check_store(TrackingConfig(uri=uri))
    return str(caught.value)


def test_database_without_a_server(server: Server, database: str, tmp_path: Path) -> None:
    """`tracking.uri=postgresql://…`, in SQLAlchemy's plain form."""
    plain = database.replace("postgresql+psycopg2://", "postgresql://")
    config = TrackingConfig(uri=plain, experiment_name="direct", artifact_location=str(tmp_path), system_metrics=False)
    with start_run(config, output_dir=tmp_path / "out", kind=Kind.SINGLE, run_name="direct") as run:
        run.metrics({"a": 1.0})
        assert run.finish(State.COMPLETE) == 0
    assert "direct" in server.get(f"/ajax-api/2.0/mlflow/runs/get?run_id={run.run_id}").decode()


def test_empty_database(postgresql: str, tmp_path: Path, programs: ProgramRunner) -> None:
    """Nothing is made for a reader, and by several processes at once only one set of tables."""
    with pytest.raises(TrackingError, match="is empty: MLflow has recorded nothing there"):
        read_run(TrackingConfig(uri=postgresql), "0" * 32)
    begin = (
        "from lorahydra.config.schema import TrackingConfig; from lorahydra.tracking import check_store;"
        f"check_store(TrackingConfig(uri={postgresql!r}))"
    )
    running = [programs.start(["-c", begin], tmp_path) for _ in range(3)]
    ends = [program.finish() for program in running]
    assert [done.returncode for done in ends] == [0] * 3, ends
    assert [done.stdout + done.stderr for done in ends] == [""] * 3, "the logs of MLflow and alembic stay quiet"


def test_tables_that_are_being_made_are_waited_for(postgresql: str) -> None:
    engine, checked = sqlalchemy.create_engine(postgresql), threading.Event()

    def check() -> None:
        check_store(TrackingConfig(uri=postgresql))
        checked.set()

    checking = threading.Thread(target=check)
    with engine.connect() as connection:
        # As the process that makes the tables does, which is in the middle of it.
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({database_module.TABLES})")
        execute(postgresql, "CREATE TABLE alembic_version (version_num varchar(32))")
        checking.start()
        waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        wait_for(lambda: connection.exec_driver_sql(waits).scalar() == 1)
        execute(postgresql, "DROP TABLE alembic_version")
    engine.dispose()
    checking.join()
    assert checked.is_set()


def test_read_only_database(server: Server, database: str) -> None:
    reader = database.replace("lora@", "reader@")
    execute(database, "CREATE ROLE reader LOGIN", "GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader")
    check_store(TrackingConfig(uri=database))
    assert "cannot be written by this user" in fault(reader)
    execute(database, "ALTER ROLE reader SET default_transaction_read_only = on")
    assert "is read-only" in fault(reader)


def test_database_that_is_down(database: str, tmp_path: Path) -> None:
    message = fault(f"postgresql://me:secret@/mlflow?host={tmp_path}")
    assert message.startswith(f"the MLflow store postgresql+psycopg2://me:***@/mlflow?host={tmp_path} cannot be used: ")
    assert "Is the server running locally" in message
    assert "\n" not in message


def test_one_database_for_both_is_refused(server: Server, postgresql: str) -> None:
    """MLflow and Optuna have a table of the same name."""
    import optuna

    optuna.storages.RDBStorage(postgresql)
    assert "give MLflow a separate database" in fault(postgresql)
