"""Waiting for a store that cannot be reached, and for no other fault."""

from __future__ import annotations

import http.server
import logging
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lorahydra.config.schema import TrackingConfig
from lorahydra.errors import StoreUnavailableError, TrackingError
from lorahydra.names import Kind
from lorahydra.tracking import check_store, patience, start_run
from lorahydra.tracking.faults import is_passing, store_fault
from lorahydra.tracking.patience import patiently
from lorahydra.tracking.start import _create_again as create_again


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that only pauses move; the pauses."""
    pauses: list[float] = []
    # For this module alone: other threads sleep, too.
    monkeypatch.setattr(patience, "time", SimpleNamespace(sleep=pauses.append, monotonic=lambda: sum(pauses)))
    return pauses


def failing(times: int, error: Exception) -> Any:
    left = iter(range(times))

    def action() -> str:
        if next(left, None) is not None:
            raise error
        return "done"

    return action


def test_it_is_tried_again_until_the_time_is_over(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    config = TrackingConfig(retry_seconds=20)
    caplog.set_level(logging.INFO)
    assert patiently(config, failing(4, StoreUnavailableError("gone"))) == "done"
    assert clock == [0.5, 1, 2, 4]
    said = [record.getMessage() for record in caplog.records]
    assert said == ["gone; waiting for it, up to 20 s (tracking.retry_seconds)", "The MLflow store is back"]
    clock.clear()
    with pytest.raises(StoreUnavailableError):
        patiently(config, failing(100, StoreUnavailableError("gone")))
    assert sum(clock) == 20


def test_what_waiting_does_not_mend_is_said_at_once(clock: list[float]) -> None:
    for error, seconds in ((TrackingError("no"), 20), (StoreUnavailableError("gone"), 0)):
        with pytest.raises(type(error)):
            patiently(TrackingConfig(retry_seconds=seconds), failing(1, error))
    assert clock == []


def test_an_interrupt_that_is_postponed_ends_the_waiting(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorahydra.tracking.patience.interrupted", lambda: True)
    with pytest.raises(StoreUnavailableError):
        patiently(TrackingConfig(retry_seconds=20), failing(1, StoreUnavailableError("gone")))
    assert clock == []


def mlflow_error(text: str, code: int | None = None, cause: Exception | None = None) -> Exception:
    from mlflow.exceptions import MlflowException

    error = MlflowException(text) if code is None else MlflowException(text, error_code=code)
    error.__cause__ = cause
    return error


class EndpointConnectionError(Exception):
    """As an artifact service's SDK names it."""


@pytest.mark.parametrize(
    ("error", "passing"),
    [
        (ConnectionRefusedError(), True),
        (TimeoutError(), True),
        (EndpointConnectionError(), True),
        (sqlite3.OperationalError("database is locked"), True),
        (sqlite3.OperationalError("attempt to write a readonly database"), False),
        (mlflow_error("API request to endpoint x failed with error code 502 != 200"), True),
        (mlflow_error("API request to x failed", cause=ConnectionResetError()), True),
        (mlflow_error("this client has a fault"), False),
        (FileNotFoundError(), False),
    ],
)
def test_which_faults_may_pass(error: Exception, passing: bool) -> None:
    assert is_passing(error) is passing
    assert isinstance(store_fault("x", error), StoreUnavailableError) is passing


@contextmanager
def refusing(times: int) -> Iterator[str]:
    """A server in trouble, then one that is none of MLflow's."""
    left = iter(range(times))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200 if next(left, None) is None else 503)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def test_a_start_waits_and_the_first_check_does_not(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    with refusing(3) as uri:
        with pytest.raises(StoreUnavailableError, match="HTTP 503"):
            check_store(TrackingConfig(uri=uri))
        assert clock == []
        with pytest.raises(TrackingError, match="not as an MLflow server"):
            start_run(TrackingConfig(uri=uri), output_dir=tmp_path, kind=Kind.TRIAL, run_name="x")
    assert len(clock) == 2


def test_of_two_runs_that_the_server_made_of_one_request_one_stays(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = ("0", 1234, {"a": "b"}, "demo")
    other = client.create_run("0", 1234, {"a": "c"}, "demo")
    found: list[Any] = [[]]  # the server makes the first one after it was looked for
    search = client.search_runs
    monkeypatch.setattr(client, "search_runs", lambda *given: found.pop() if found else search(*given))
    late = client.create_run(*new)
    run = create_again(client, *new)
    active = {one.info.run_id for one in client.search_runs(["0"])}
    assert active == {run.info.run_id, other.info.run_id}
    assert run.info.run_id != late.info.run_id
    assert create_again(client, *new).info.run_id == run.info.run_id
