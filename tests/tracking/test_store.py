from __future__ import annotations

import contextlib
import http.server
import os
import socket
import sqlite3
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.support.ports import free_port
from tests.support.programs import ProgramRunner

from lorahydra.config.schema import TrackingConfig
from lorahydra.errors import ConfigError, LorahydraError, OutputError, StoreUnavailableError, TrackingError
from lorahydra.names import State
from lorahydra.tracking import TrackedRun, check_store, read_run, store
from lorahydra.tracking.address import resolve, run_url

StartRun = Callable[..., TrackedRun]


def fault(start: StartRun, kind: type[LorahydraError], **settings: Any) -> str:
    """The message of the error that a start ends in; one line, as every user sees it."""
    with pytest.raises(kind) as caught:
        start(**settings)
    assert type(caught.value) is kind
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "uri",
    [
        *("foo://x", "mlruns", "file:///x", "postgres://x/y", "sqlite://", "sqlite:///:memory:", "http://", ""),
        "sqlite:///mlflow.db?timeout=5",
    ],
)
def test_unknown_address(uri: str) -> None:
    with pytest.raises(ConfigError, match=r"^tracking\.uri="):
        resolve(uri)


def test_address_of_a_server() -> None:
    assert resolve(" http://host:5000/ ") == "http://host:5000"


def test_passwords_are_not_shown(start: StartRun) -> None:
    assert "secret" not in run_url("https://me:secret@host", "1", "2")
    assert "secret" not in fault(start, ConfigError, uri="postgres://me:secret@host/db")
    assert "secret" not in fault(start, StoreUnavailableError, uri=f"http://me:secret@127.0.0.1:{free_port()}")


def test_unreachable_server(start: StartRun, tmp_path: Path) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    message = fault(start, StoreUnavailableError, uri=address)
    assert message == f"the MLflow store {address} cannot be used: nothing listens there (connection refused)"
    assert not (tmp_path / "out").exists()


def test_unknown_host(start: StartRun) -> None:
    assert "host name is unknown" in fault(start, StoreUnavailableError, uri="http://no-such-host.invalid:5000")


def test_server_that_never_answers(start: StartRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "SECONDS_TO_ANSWER", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        began = time.monotonic()
        assert "no answer in time" in fault(start, StoreUnavailableError, uri=address)
        assert time.monotonic() - began < 60, "MLflow itself would wait for minutes"


@contextmanager
def answering(status: int, text: str = "<html>hello</html>", knows: Sequence[str] = ()) -> Iterator[str]:
    """A server that gives every request the same answer, but for addresses that it knows how to answer."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answers = self.path.endswith(tuple(knows))
            self.send_response(200 if answers else status)
            self.send_header("Content-Type", "application/json" if answers else "text/html")
            self.end_headers()
            self.wfile.write(b"{}" if answers else text.encode())

        do_GET = do_POST

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "expected", "kind"),
    [
        (200, "not as an MLflow server", TrackingError),
        (404, "not as an MLflow server", TrackingError),
        (401, "TOKEN", TrackingError),
        (502, "HTTP 502", StoreUnavailableError),
    ],
)
def test_server_that_is_no_good(start: StartRun, status: int, expected: str, kind: type[LorahydraError]) -> None:
    with answering(status) as address:
        assert expected in fault(start, kind, uri=address)


@pytest.mark.parametrize(
    "knows", [["/experiments/list"], ["/experiments/list", "/experiments/search"]], ids=["MLflow 1.2", "MLflow 2.22"]
)
def test_server_of_an_old_mlflow(start: StartRun, knows: list[str]) -> None:
    with answering(404, knows=knows) as address:
        message = fault(start, TrackingError, uri=address)
    assert message.startswith(f"the MLflow server {address} is too old: upgrade it to MLflow 3")


def test_server_under_a_name_that_it_does_not_allow(start: StartRun) -> None:
    with answering(403, "Invalid Host header - possible DNS rebinding attack detected") as address:
        message = fault(start, TrackingError, uri=address.replace("http://", "http://me:secret@"))
    assert message.endswith(f"start it with --allowed-hosts {address.removeprefix('http://')}")


def test_server_whose_certificate_is_unknown(start: StartRun) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(Path(__file__).parents[1] / "judges" / "loopback.pem")
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def shake_hands() -> None:
            connection, _ = listening.accept()
            with connection, contextlib.suppress(OSError):
                context.wrap_socket(connection, server_side=True).close()

        thread = threading.Thread(target=shake_hands)
        thread.start()
        message = fault(start, TrackingError, uri=f"https://127.0.0.1:{listening.getsockname()[1]}")
        thread.join()
    assert "its certificate is not trusted" in message
    assert message.endswith("MLFLOW_TRACKING_SERVER_CERT_PATH")


def test_a_database_that_is_not_supported(start: StartRun) -> None:
    message = fault(start, ConfigError, uri="mysql://me:secret@host/db")
    assert message.startswith("tracking.uri=mysql://… is not supported: give a SQLite file")


def test_missing_driver(start: StartRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "psycopg2", None)
    message = fault(start, ConfigError, uri="postgresql+psycopg2://host/db")
    assert message.endswith("pip install 'lorahydra[postgresql]'")


def test_file_that_is_no_database(start: StartRun, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello " * 100)
    message = fault(start, TrackingError, uri=f"sqlite:///{tmp_path}/notes.txt")
    assert "not a SQLite database" in message
    assert (tmp_path / "notes.txt").read_text() == "hello " * 100


def test_database_of_another_program(start: StartRun, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "other.db")) as other:
        other.execute("CREATE TABLE studies (id INTEGER)")
    message = fault(start, TrackingError, uri=f"sqlite:///{tmp_path}/other.db")
    assert "tables that are not MLflow's" in message
    assert tables(tmp_path / "other.db") == {"studies"}


def tables(file: Path) -> set[str]:
    with closing(sqlite3.connect(file)) as database:
        return {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def set_revision(file: Path, revision: str) -> None:
    with closing(sqlite3.connect(file)) as database:
        database.execute("UPDATE alembic_version SET version_num = ?", (revision,))
        database.execute("DROP TABLE label_schemas")  # MLflow migrates unasked when a table is missing
        database.commit()


def test_database_of_an_older_mlflow_is_left_as_it_is(start: StartRun, uri: str, tmp_path: Path) -> None:
    set_revision(tmp_path / "mlflow.db", "451aebb31d03")
    before = tables(tmp_path / "mlflow.db")
    message = fault(start, TrackingError)
    assert "made by an older MLflow" in message
    assert message.endswith(f"`mlflow db upgrade {uri}`")
    assert tables(tmp_path / "mlflow.db") == before


def test_database_of_a_newer_mlflow(start: StartRun, tmp_path: Path) -> None:
    set_revision(tmp_path / "mlflow.db", "ffffffffffff")
    assert "pip install -U mlflow" in fault(start, TrackingError)


OLD = (Path(__file__).parent / "mlflow_1_2.sql").read_text("utf-8")


def test_database_of_a_very_old_mlflow_is_left_as_it_is(start: StartRun, tmp_path: Path) -> None:
    file = tmp_path / "old.db"
    with closing(sqlite3.connect(file)) as database:
        database.executescript(OLD)
    before, names = file.read_bytes(), set(tmp_path.iterdir())
    message = fault(start, TrackingError, uri=f"sqlite:///{file}")
    assert "made by an older MLflow: take a copy of it" in message
    assert file.read_bytes() == before
    assert set(tmp_path.iterdir()) == names


@pytest.mark.slow
def test_database_of_a_very_old_mlflow_can_be_upgraded_as_it_says(
    start: StartRun, tmp_path: Path, programs: ProgramRunner
) -> None:
    with closing(sqlite3.connect(tmp_path / "old.db")) as database:
        database.executescript(OLD)
    uri = f"sqlite:///{tmp_path / 'old.db'}"
    command = fault(start, TrackingError, uri=uri).split("`")[1].split()
    programs.run(["-m", *command], tmp_path).check_returncode()
    with start(uri=uri, experiment_name="new") as run:
        run.metrics({"a": 1.0})
        assert run.finish(State.COMPLETE) == 0


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder in a world where permissions count, also when the tests run as root."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        is_root = os.geteuid() == 0
        if is_root:
            os.seteuid(65534)
        try:
            yield folder
        finally:
            if is_root:
                os.seteuid(0)
            folder.chmod(0o777)


def test_read_only_database(start: StartRun, mlflow_database_bytes: bytes, unprivileged: Path) -> None:
    file = unprivileged / "mlflow.db"
    file.write_bytes(mlflow_database_bytes)
    file.chmod(0o444)
    assert "it is read-only" in fault(start, TrackingError, uri=f"sqlite:///{file}")


@pytest.mark.parametrize("read_only", ["file", "folder"])
def test_read_only_database_is_noticed_before_a_trial(
    start: StartRun, mlflow_database_bytes: bytes, unprivileged: Path, read_only: str
) -> None:
    """Also where the experiment is there, and nothing would have to be written yet."""
    folder = unprivileged / "own"
    folder.mkdir()
    file = folder / "mlflow.db"
    file.write_bytes(mlflow_database_bytes)
    config = TrackingConfig(uri=f"sqlite:///{file}")
    check_store(config)
    before = file.read_bytes()
    (file if read_only == "file" else folder).chmod(0o444 if read_only == "file" else 0o555)
    with pytest.raises(TrackingError, match="change the permissions of the file and its folder"):
        check_store(config)
    with pytest.raises(TrackingError, match="has no run"):  # it can be read
        read_run(config, "0" * 32)
    assert file.read_bytes() == before
    folder.chmod(0o755)


@pytest.fixture
def mlflow_database_bytes(mlflow_database: Path) -> bytes:
    return mlflow_database.read_bytes()


def test_folder_where_no_database_can_be_made(start: StartRun, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = fault(start, TrackingError, uri=f"sqlite:///{tmp_path}/file/mlflow.db")
    assert "cannot be made: cannot write to" in message


def test_artifact_folder_that_cannot_be_written(start: StartRun, tmp_path: Path) -> None:
    (tmp_path / "mlartifacts").touch()
    message = fault(start, TrackingError)
    assert f"the artifact folder {tmp_path}/mlartifacts/lorahydra" in message


def test_output_folder_that_cannot_be_written(start: StartRun, tmp_path: Path, client: Any) -> None:
    (tmp_path / "out").touch()
    assert "cannot write to" in fault(start, OutputError)
    assert client.search_runs(["1"]) == [], "no run is left behind"


def test_store_can_be_checked_beforehand(uri: str, client: Any) -> None:
    check_store(TrackingConfig(uri=uri, experiment_name="e"))
    experiment = client.get_experiment_by_name("e")
    assert client.search_runs([experiment.experiment_id]) == []
    client.delete_experiment(experiment.experiment_id)
    with pytest.raises(ConfigError, match="was deleted"):
        check_store(TrackingConfig(uri=uri, experiment_name="e"))


def test_deleted_experiment(start: StartRun, client: Any) -> None:
    client.delete_experiment(client.create_experiment("gone"))
    message = fault(start, ConfigError, experiment_name="gone")
    assert message.startswith("tracking.experiment_name=gone was deleted from")
    assert "mlflow experiments restore --experiment-id 1" in message


def test_artifact_location_of_a_new_experiment(start: StartRun, client: Any, tmp_path: Path) -> None:
    with start(artifact_location=str(tmp_path / "with space #1")) as run:
        run.text("x", "x.txt")
    files = list((tmp_path / "with space #1").rglob("x.txt"))
    assert [file.read_text() for file in files] == ["x"]
    assert [file.path for file in client.list_artifacts(run.run_id)] == ["x.txt"]


def test_database_that_was_deleted_is_made_again(start: StartRun, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    with start():
        pass
    (tmp_path / "mlflow.db").unlink()
    with start() as run:
        pass
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        assert database.execute("SELECT run_uuid, status FROM runs").fetchall() == [(run.run_id, "FINISHED")]
    assert MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").get_run(run.run_id).info.run_name == "demo"


MAKE = """
import sys
from pathlib import Path
from lorahydra.config.schema import TrackingConfig
from lorahydra.names import Kind
from lorahydra.tracking import start_run

config = TrackingConfig(uri="sqlite:///mlflow.db", system_metrics=False)
with start_run(config, output_dir=Path(sys.argv[1]), kind=Kind.SINGLE, run_name="demo") as run:
    run.metrics({"a": 1.0})
"""


@pytest.mark.slow
def test_two_processes_make_the_database_at_once(tmp_path: Path, programs: ProgramRunner) -> None:
    running = [programs.start(["-c", MAKE, str(tmp_path / name)], tmp_path) for name in ("a", "b")]
    ends = [process.finish() for process in running]
    assert [done.returncode for done in ends] == [0, 0], ends
    assert [done.stdout + done.stderr for done in ends] == ["", ""], "MLflow's and alembic's logs stay quiet"
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"a", "b", "mlflow.db", ".mlflow.db.lock", "mlartifacts"}, "nothing else is left behind"
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        assert database.execute("SELECT count(*) FROM metrics").fetchone() == (2,)
        assert database.execute("SELECT status FROM runs").fetchall() == [("FINISHED",)] * 2


def test_a_folder_whose_name_looks_encoded(tmp_path: Path) -> None:
    folder = tmp_path / "100%25"
    folder.mkdir()
    check_store(TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db"))
    assert (folder / "mlflow.db").is_file()
    assert resolve(resolve(f"sqlite:///{folder}/mlflow.db")) == resolve(f"sqlite:///{folder}/mlflow.db")


def test_names_as_long_as_mlflow_keeps_them(tmp_path: Path, start: StartRun, client: Any) -> None:
    name = "я" * 256
    with start(experiment_name=name) as run:
        pass
    experiment = client.get_experiment(run.experiment_id)
    assert experiment.name == name
    assert len(Path(experiment.artifact_location).name) <= 120
    for key, length in (("experiment_name", 257), ("run_name", 251), ("artifact_location", 257)):
        with pytest.raises(
            ConfigError, match=rf"^tracking\.{key} has {length} characters, and MLflow keeps {length - 1}:"
        ):
            TrackingConfig(**{key: "n" * length})
