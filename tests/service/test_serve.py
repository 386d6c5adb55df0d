"""`lorahydra serve` before it serves, and what it needs in order to."""

from __future__ import annotations

import dataclasses
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy
from tests.service.served import Served, free_port
from tests.support.waiting import wait_for

from lorahydra.cli.serve import serve as command
from lorahydra.errors import ConfigError
from lorahydra.service.access import Access
from lorahydra.service.database import Database, Version
from lorahydra.service.placing import check_placing
from lorahydra.service.results import Stores
from lorahydra.service.server import serve
from lorahydra.service.service import Service
from lorahydra.service.views import FineTuneParams, Kind

pytestmark = pytest.mark.slow


def test_a_refusal_to_start_is_one_line(make_server: Callable[..., Served]) -> None:
    done = make_server().run("--host", "0.0.0.0")
    assert done.returncode == 2, done.stderr
    [line] = done.stderr.strip().splitlines()
    assert "LORAHYDRA_API_TOKEN" in line


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--upload-limit", "1 banana"), "--upload-limit 1 banana"),
        (("--mlflow-url", "javascript:x"), "--mlflow-url javascript:x"),
        (("--storage", "mysql://u@h/x"), "mysql"),
        (("--set", "training.nonsense=1"), "unknown key training.nonsense"),
        (("--launcher", "nonsense"), "hydra/launcher=nonsense does not exist"),
        (("--launcher", "joblib", "--set", "hydra.launcher.nonsense=1"), "unknown key hydra.launcher.nonsense"),
        (
            ("--studies", "postgresql://me:secret@host/studies"),
            "--studies postgresql://me:***@host/studies has a password",
        ),
        (("--set", "tracking.uri=http://host:5000"), "give --tracking-uri instead"),
        (("--set", "hydra.sweeper.n_jobs=2"), "needs a launcher, for example --launcher joblib"),
        (("--set", "hydra.sweeper.wait=false"), "hydra.sweeper.wait=false is for the command line"),
        (("--port", "{taken}"), "port {taken} of 127.0.0.1 cannot be used"),
    ],
)
def test_what_it_refuses_to_start_with(options: tuple[str, ...], reason: str, tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        taken = listener.getsockname()[1]
        free = ("--folder", str(tmp_path / "service"), "--port", str(free_port()), "--no-mlflow")
        with pytest.raises(ConfigError, match=re.escape(reason.format(taken=taken))):
            command.main([*free, *(option.format(taken=taken) for option in options)], standalone_mode=False)


def test_workers_elsewhere_need_databases_that_they_can_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit", reason="the extra slurm is not installed")
    slurm, folder = ("hydra/launcher=submitit_slurm",), tmp_path / "service"
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ConfigError, match="there is no sbatch"):
        check_placing(slurm, "sqlite:///service.db", Stores(folder, None))
    monkeypatch.setattr("shutil.which", lambda name: name)
    with pytest.raises(ConfigError, match=r"give --studies postgresql://\S+ and --tracking-uri http://HOST:5000"):
        check_placing(slurm, "sqlite:///service.db", Stores(folder, None))
    shared = Stores(folder, None, "postgresql://me@host/studies", "http://host:5000")
    assert check_placing(slurm, "sqlite:///service.db", shared)
    assert not check_placing(("hydra/launcher=joblib",), "sqlite:///service.db", Stores(folder, None))
    monkeypatch.setattr("lorahydra.utils.databases.network_file_system", lambda path: "nfs4")
    assert check_placing(slurm, "postgresql://me@host/service", shared)
    with pytest.raises(ConfigError, match=r"\(nfs4\).* or --storage postgresql://USER@HOST/NAME"):
        check_placing(slurm, "sqlite:///service.db", shared)


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
        serve(service.config, Access(), free_port(), free_port())
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
    deletion = again.deletions.delete(Kind.PROJECT, 123).id
    wait_for(lambda: again.deletions.get(deletion).ended is not None)
    assert again.projects.create("After").id == 125
    assert again.jobs.start(123, params, idempotency_key="one").id == job.id + 1
    again.close()
