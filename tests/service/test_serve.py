"""`lorahydra serve` before it serves, and what it needs in order to."""

from __future__ import annotations

import dataclasses
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy
from tests.service.served import Served, free_port

from lorahydra.errors import ConfigError
from lorahydra.service.access import Access
from lorahydra.service.database import Database, Version
from lorahydra.service.server import ServerConfig, serve
from lorahydra.service.service import Service
from lorahydra.service.views import FineTuneParams


def ended(server: Served, *options: str) -> str:
    """Start it with options that it refuses; returns the one line."""
    done = server.run(*options)
    assert done.returncode == 2, done.stderr
    [line] = done.stderr.strip().splitlines()
    return line


def test_what_it_refuses_to_start_with(make_server: Callable[..., Served]) -> None:
    server = make_server()
    assert "LORAHYDRA_API_TOKEN" in ended(server, "--host", "0.0.0.0")
    assert "--upload-limit 1 banana" in ended(server, "--upload-limit", "1 banana")
    assert "--mlflow-url javascript:x" in ended(server, "--mlflow-url", "javascript:x")
    assert "mysql" in ended(server, "--storage", "mysql://u@h/x")
    assert "unknown key training.nonsense" in ended(server, "--set", "training.nonsense=1")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"port {port} of 127.0.0.1 cannot be used" in ended(server, "--port", str(port))


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; import lorahydra.service.server, lorahydra.service.service, lorahydra.service.job; "
        "print([name for name in ('torch', 'transformers', 'mlflow', 'optuna', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_one_server_at_a_time(service: Service) -> None:
    with pytest.raises(ConfigError, match="another lorahydra server uses the folder"):
        Service(service.config).open()
    # Another folder, and the same database.
    url = f"sqlite:///{service.config.folder / 'service.db'}"
    with pytest.raises(ConfigError, match="another lorahydra server uses sqlite"):
        Database(url)


def test_a_second_server_leaves_the_ui_of_the_first_alone(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[Path] = []
    monkeypatch.setattr("lorahydra.service.server.end_ui", ended.append)
    with pytest.raises(ConfigError, match="another lorahydra server uses the folder"):
        serve(ServerConfig(Access(), free_port(), free_port()), service.config)
    assert ended == []


def test_a_database_of_another_version_is_refused(service: Service) -> None:
    url = f"sqlite:///{service.config.folder / 'other.db'}"
    first = Database(url)
    with first.changing() as session:
        session.execute(sqlalchemy.update(Version).values(version=99))
    first.close()
    with pytest.raises(ConfigError, match="another version of lorahydra serve \\(tables 99, this one has 1\\)"):
        Database(url)


def test_postgresql(postgresql: str, service: Service) -> None:
    config = dataclasses.replace(service.config, storage=postgresql, folder=service.config.folder / "other")
    first = Service(config)
    first.open()
    params = FineTuneParams(use_llm_judge=False, base_model_name="tiny", n_trials=5)
    job = first.jobs.start(123, params, idempotency_key="one")
    assert first.projects.create("Next").id == 124
    with pytest.raises(ConfigError, match="another lorahydra server uses postgresql"):
        Service(dataclasses.replace(config, folder=service.config.folder / "third")).open()
    first.close()
    again = Service(config)
    again.open()
    assert again.jobs.start(123, params, idempotency_key="one").id == job.id
    assert again.jobs.cancel(job.id).state == "cancelled"
    assert again.jobs.counts()["cancelled"] == 1
    again.close()
