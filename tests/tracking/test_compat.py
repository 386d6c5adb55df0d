"""What lorahydra relies on in MLflow beyond its documented API."""

from __future__ import annotations

import http.server
import logging
import threading
from pathlib import Path
from typing import Any

import pytest

from lorahydra.tracking import compat


def test_the_log_is_quiet_in_one_thread(capfd: pytest.CaptureFixture[str]) -> None:
    import mlflow  # noqa: F401  # sets up its log

    log = logging.getLogger("mlflow.some.module")
    with compat.mute():
        log.warning("quiet")
        other = threading.Thread(target=log.warning, args=("loud",))
        other.start()
        other.join()
    said = capfd.readouterr().err
    assert "loud" in said
    assert "quiet" not in said


def test_a_run_that_has_ended_is_open_again(uri: str, client: Any) -> None:
    run = client.create_run("0")
    client.set_terminated(run.info.run_id)
    compat.open_run(client, run.info.run_id)
    info = client.get_run(run.info.run_id).info
    assert info.status == "RUNNING"
    assert not info.end_time


def test_tables_are_made_and_their_version_is_known(tmp_path: Path) -> None:
    store = compat.make_tables(f"sqlite:///{tmp_path}/a.db", tmp_path)
    with store.engine.connect() as connection:
        revision = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    store.engine.dispose()
    migrations = compat.migrations()
    assert revision == migrations.get_current_head()
    assert len([script.revision for script in migrations.walk_revisions()]) > 1


def test_a_trace_is_stored_as_a_whole(uri: str, client: Any) -> None:
    from lorahydra.tracking.delivery import send_trace
    from lorahydra.tracking.operations import Assessments, trace

    run = client.create_run("0")
    found = Assessments({"judge_score": 80.0, "style": 4}, "good \ud800\0", "judge-1")
    times = {"start_ns": 10**18, "end_ns": 10**18 + 10**6}
    call = trace("judge", {"a": 1}, {"b": 2}, {}, previews=("Hi\n\ud800", "80"), assessments=found, ok=True, **times)
    for _ in range(2):
        send_trace(uri, "0", run.info.run_id, call)
    [stored] = client.search_traces(locations=["0"])
    assert stored.info.trace_id == f"tr-{call['id']}"
    assert [span.inputs for span in stored.data.spans] == [{"a": 1}]
    assert (stored.info.request_preview, stored.info.response_preview) == (r"Hi \ud800", "80")
    given = {each.name: (each.feedback.value, each.rationale) for each in stored.info.assessments}
    assert given == {"judge_score": (80.0, r"good \ud800\x00"), "style": (4, None)}
    assert {each.source.source_id for each in stored.info.assessments} == {"judge-1"}
    old = {name: value for name, value in call.items() if name not in ("previews", "assessments")} | {"id": "0" * 32}
    send_trace(uri, "0", run.info.run_id, old)
    [stored] = client.search_traces(locations=["0"], filter_string=f"request_id = 'tr-{old['id']}'")
    assert stored.info.request_preview == '{"a": 1}', "as the queue of an older version has it"


def test_a_server_is_asked_with_a_short_patience() -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(500 if self.path != "/api/2.0/mlflow/a/b" or body != b'{"c": 1}' else 418)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.handle_request).start()
        answer = compat.ask(f"http://127.0.0.1:{server.server_port}", "POST", "a/b", {"c": 1}, seconds=5)
    assert answer.status_code == 418


def test_addresses_of_artifacts() -> None:
    assert compat.join_address("s3://bucket/1/artifacts", "adapter") == "s3://bucket/1/artifacts/adapter"
    assert compat.join_address("file:///a/b?c=d", "adapter") == "file:///a/b/adapter?c=d"


def test_the_system_is_sampled() -> None:
    kinds = compat.system_monitors()
    assert len(kinds) == 5
    cpu = kinds[0]()
    cpu.collect_metrics()
    assert cpu.aggregate_metrics().keys() >= {"cpu_utilization_percentage"}
    cpu.clear_metrics()
