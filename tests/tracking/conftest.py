from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.mlflow_server import Server
from tests.postgres import new_database
from tests.postgres import postgresql as postgresql
from tests.postgres import postgresql_server as postgresql_server
from tests.support.programs import ProgramRunner

from lorahydra.config.schema import TrackingConfig
from lorahydra.names import Kind
from lorahydra.tracking import TrackedRun, start_run

StartRun = Callable[..., TrackedRun]


@pytest.fixture(scope="module")
def database(postgresql_server: str) -> str:
    """The database of `server`."""
    return new_database(postgresql_server)


@pytest.fixture(scope="module")
def server(database: str, programs: ProgramRunner, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real MLflow server on PostgreSQL."""
    running = Server(programs, tmp_path_factory.mktemp("server"), database)
    running.start()
    yield running
    running.kill()


@pytest.fixture
def uri(tmp_path: Path, mlflow_database: Path) -> str:
    """A SQLite store of this test's own."""
    shutil.copy(mlflow_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture
def start(tmp_path: Path, uri: str) -> StartRun:
    """Starts a run in that store; keyword arguments go to the configuration."""

    def start(**settings: Any) -> TrackedRun:
        config = TrackingConfig(**{"uri": uri, "system_metrics": False, "retry_seconds": 1.0} | settings)
        return start_run(config, output_dir=tmp_path / "out", kind=Kind.SINGLE, run_name="demo")

    return start


@pytest.fixture
def client(uri: str) -> Any:
    """MLflow's own client of that store."""
    from mlflow import MlflowClient

    return MlflowClient(uri)
