"""A models folder with the tiny model, real servers on it, and the application without a process of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn
from tests.postgres import postgresql as postgresql
from tests.postgres import postgresql_server as postgresql_server
from tests.service.served import Served
from tests.support.ports import free_port
from tests.support.programs import ProgramRunner
from tests.support.questions import question_rows
from tests.support.waiting import SECONDS, wait_for

from lorahydra.modeling.packaged import fetch
from lorahydra.service.access import Access
from lorahydra.service.app import create_app
from lorahydra.service.limits import Allowance
from lorahydra.service.service import Service, ServiceConfig


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A folder of base models with `tiny` in it."""
    import shutil

    folder = tmp_path_factory.mktemp("models")
    shutil.copytree(tiny_model, folder / "tiny")
    return folder


@pytest.fixture
def make_server(
    tmp_path: Path, models: Path, programs: ProgramRunner, mlflow_database: Path
) -> Iterator[Callable[..., Served]]:
    """Makes servers, which are gone after the test with all that they started."""
    fetch("all-minilm-l6-v2")
    made: list[Served] = []

    def make(*options: str, **environment: str) -> Served:
        made.append(Served(programs, tmp_path, models, mlflow_database, options, environment))
        return made[-1]

    yield make
    for server in made:
        server.close()


@pytest.fixture
def rows() -> bytes:
    """A small dataset as JSONL."""
    return question_rows().encode()


@pytest.fixture
def service(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """A service that starts no job."""
    for name in ("GEMINI_API_KEY", "GOOGLE_API_KEY", "GIGACHAT_CREDENTIALS", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("lorahydra.service.results.Stores.prepare", lambda stores: None)
    default = ("model=local", f"model.name_or_path={models / 'tiny'}")
    config = ServiceConfig(
        tmp_path / "service", workers=0, models_folder=models, upload_limit=100_000, overrides=default
    )
    made = Service(config)
    made.open()
    yield made
    made.close()


@pytest.fixture
def make_client(service: Service) -> Iterator[Callable[..., httpx.Client]]:
    """Makes clients of the application, which runs in a thread and is asked over loopback."""
    ends: list[Callable[[], None]] = []

    def make(access: Access | None = None, starts_per_minute: int = 30) -> httpx.Client:
        port = free_port()
        service.jobs._starts = Allowance(starts_per_minute, "starts")
        app = create_app(service, access or Access())
        server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None, ws="none", lifespan="off"))
        thread = threading.Thread(target=server.run)
        thread.start()
        client = httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", trust_env=False, timeout=SECONDS)

        def end() -> None:
            client.close()
            server.should_exit = True
            thread.join()

        ends.append(end)
        wait_for(lambda: server.started)
        return client

    yield make
    for end in ends:
        end()


@pytest.fixture
def client(make_client: Callable[..., httpx.Client]) -> httpx.Client:
    return make_client()
