"""The API on a service that starts no job: what it takes, what it refuses, and how it says so."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow
import pytest
from pyarrow import parquet
from tests.service.served import BODY, MODEL, refused
from tests.support.waiting import SECONDS, wait_for

from lorahydra.errors import OutputError
from lorahydra.service.choices import composed
from lorahydra.service.database import Job
from lorahydra.service.job import _last_word
from lorahydra.service.results import Progress, log_tail
from lorahydra.service.service import Service
from lorahydra.service.views import FineTuneParams

pytestmark = pytest.mark.slow


def test_projects(client: httpx.Client) -> None:
    made = [client.post("/projects", json={"name": name}).json()["id"] for name in ("One", "Two", "One")]
    assert made == [1, 2, 3]
    page = client.get("/projects", params={"limit": 2, "offset": 1}).json()
    assert [project["id"] for project in page["items"]] == [2, 1]
    assert page["total"] == 3
    assert client.get("/projects/2").json()["name"] == "Two"
    refused(client.get("/projects/9"), 404, "project_not_found")
    for name in ("", " ", "a\nb", "a\0b", "x" * 201, 5, None):
        refused(client.post("/projects", json={"name": name}), 422, "invalid")


def test_a_fine_tune_waits_in_order(client: httpx.Client) -> None:
    answer = client.post("/fine-tunes", json=BODY)
    assert answer.status_code == 202
    job = answer.json()
    assert job["state"] == "queued"
    assert job["place"] == 1
    assert job["dataset_name"] == "demo"
    assert client.post("/fine-tunes", json=BODY | {"name": "Mine"}).json()["place"] == 2
    assert client.post("/fine-tunes/1/cancel").json()["state"] == "cancelled"
    assert client.get("/fine-tunes/2").json()["place"] == 1
    assert client.post("/fine-tunes/1/resume").json()["place"] == 2
    refused(client.post("/fine-tunes/2/resume"), 409, "conflict")
    refused(client.get("/fine-tunes/1/adapter"), 409, "no_adapter")
    assert client.get("/fine-tunes/1/leaderboard").json() == []
    assert client.get("/fine-tunes/1/log").json() == {"text": "", "size": 0, "truncated": False}
    assert client.get("/fine-tunes/1/examples").json()["items"] == []
    assert [job["id"] for job in client.get("/fine-tunes", params={"project_id": 123}).json()["items"]] == [2, 1]
    # The project of the examples was made on first use; others are not.
    assert client.get("/projects/123").json()["jobs"] == 2
    refused(client.post("/fine-tunes", json=BODY | {"project_id": 124}), 404, "project_not_found")
    refused(client.get("/fine-tunes/3"), 404, "fine_tune_not_found")
    refused(client.post("/fine-tunes", json=BODY | {"dataset_id": 1}), 404, "dataset_not_found")


@pytest.mark.parametrize(
    "params",
    [
        {"n_trials": 4},
        {"n_trials": 101},
        {"n_trials": "20"},
        {"n_trials": 5.5},
        {"use_llm_judge": "no"},
        {"base_model_name": "x hydra.run.dir=/etc"},
        {"base_model_name": "../../etc"},
        {"base_model_name": "/etc"},
        {"base_model_name": "a/../b"},
        {"base_model_name": "a/b/c"},
        {"base_model_name": "tiny\n"},
        {"base_model_name": "${oc.env:HOME}"},
        {"base_model_name": "x" * 300},
        {"judge_model_id": "a b", "use_llm_judge": True},
        {"something": 1},
    ],
)
def test_parameters_that_are_not_valid(client: httpx.Client, params: dict[str, Any]) -> None:
    refused(client.post("/fine-tunes", json=BODY | {"fine_tuning_params": MODEL | params}), 422, "invalid")


def test_the_judge_has_to_be_set_up(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    judged = {"project_id": 123, "fine_tuning_params": {"base_model_name": "tiny"}}
    line = refused(client.post("/fine-tunes", json=judged), 409, "judge_not_configured")
    assert "GEMINI_API_KEY" in line
    assert "pip install" in line or "environment variable" in line
    unknown = {"project_id": 123, "fine_tuning_params": {"judge_model_id": "foo"}}
    line = refused(client.post("/fine-tunes", json=unknown), 422, "judge_not_found")
    assert line.startswith("LLM judge model not found: 'foo'. Registered: gemini")
    # The first one that is configured is the default.
    monkeypatch.setenv("OPENAI_API_KEY", "a-key")
    job = client.post("/fine-tunes", json=judged).json()
    assert job["params"] == {
        "use_llm_judge": True,
        "judge_model_id": "openai",
        "base_model_name": "tiny",
        "n_trials": 20,
    }
    judges = {judge["id"]: judge for judge in client.get("/judges").json()}
    assert judges["openai"]["is_default"]
    assert "a-key" not in client.get("/judges").text
    assert not judges["gigachat"]["is_configured"]


def test_estimate(client: httpx.Client) -> None:
    without = client.post("/fine-tunes/estimate", json={"fine_tuning_params": MODEL}).json()
    assert without["judge_calls"] == 0
    assert without["judge_cost"] == 0
    params = {"judge_model_id": "gemini", "base_model_name": "smollm2-135m-instruct", "n_trials": 10}
    answer = client.post("/fine-tunes/estimate", json={"fine_tuning_params": params})
    assert answer.status_code == 200, answer.text
    judged = answer.json()
    # Ten trials and the untuned model on five examples, three finalists on all 32, both on all 32 of the test.
    assert judged["judge_calls"] == 11 * 5 + 3 * 32 + 2 * 32
    assert judged["judge_cost"] > 0
    assert judged["seconds"] > 10


def test_names_and_notes(client: httpx.Client) -> None:
    path = f"/fine-tunes/{client.post('/fine-tunes', json=BODY).json()['id']}"
    changed = client.patch(path, json={"name": "  Night   run ", "notes": "one\r\n\ttwo\n"}).json()
    assert (changed["name"], changed["notes"]) == ("Night run", "one\n\ttwo")
    assert client.patch(path, json={}).json() == client.get(path).json()
    assert client.patch(path, json={"notes": ""}).json()["notes"] == ""
    for body in ({"name": " "}, {"name": "a\nb"}, {"notes": "\x00"}, {"notes": "x" * 10_001}, {"state": "complete"}):
        refused(client.patch(path, json=body), 422, "invalid")
    refused(client.patch(path, content="name=x"), 415, "unsupported_media_type")
    refused(client.patch(path, json={}, headers={"Origin": "https://evil.example"}), 403, "cross_site")
    refused(client.patch("/fine-tunes/99", json={}), 404, "fine_tune_not_found")
    assert client.get(path).json()["name"] == "Night run"
    board = client.get(f"{path}/leaderboard.csv")
    assert board.headers["content-type"].startswith("text/csv")
    assert board.text.startswith("rank,number,state,combined,")


def test_idempotency_also_after_a_restart(
    make_client: Callable[..., httpx.Client], service: Service, models: Path
) -> None:
    client = make_client()
    key = {"Idempotency-Key": "one"}
    job = client.post("/fine-tunes", json=BODY, headers=key).json()
    assert client.post("/fine-tunes", json=BODY, headers=key).json()["id"] == job["id"]
    other = BODY | {"fine_tuning_params": MODEL | {"n_trials": 6}}
    refused(client.post("/fine-tunes", json=other, headers=key), 409, "idempotency_key_reused")
    refused(client.post("/fine-tunes", json=BODY, headers={"Idempotency-Key": "x" * 300}), 422, "invalid")
    service.close()
    again = Service(service.config)
    again.open()
    try:
        assert again.jobs.start(123, service.jobs.get(job["id"]).params, idempotency_key="two").id == job["id"] + 1
    finally:
        again.close()
    service.__init__(service.config)  # type: ignore[misc]
    service.open()
    assert client.post("/fine-tunes", json=BODY, headers=key).json()["id"] == job["id"]
    assert client.get("/fine-tunes").json()["total"] == 2


def test_starts_are_limited(make_client: Callable[..., httpx.Client]) -> None:
    client = make_client(starts_per_minute=2)
    for _ in range(2):
        assert client.post("/fine-tunes", json=BODY).status_code == 202
    answer = client.post("/fine-tunes", json=BODY)
    refused(answer, 429, "too_many_requests")
    assert 0 < int(answer.headers["Retry-After"]) <= 60


def upload(client: httpx.Client, name: str, content: bytes, project: int = 1) -> httpx.Response:
    return client.post(f"/projects/{project}/datasets", files={"file": (name, content)})


def test_a_dataset_is_checked_and_kept(client: httpx.Client, service: Service, rows: bytes) -> None:
    client.post("/projects", json={"name": "One"})
    answer = upload(client, "мои данные.jsonl", rows)
    assert answer.status_code == 201, answer.text
    dataset = answer.json()
    assert dataset["name"] == "мои данные.jsonl"
    assert dataset["rows"] == 40
    assert dataset["report"]["ok"]
    assert dataset["report"]["sources"][0]["source"] == "мои данные.jsonl"
    assert client.get("/projects/1/datasets").json()["items"][0]["report"] == {}
    assert client.get(f"/datasets/{dataset['id']}").json() == dataset
    refused(upload(client, "a.jsonl", rows, project=9), 404, "project_not_found")
    # It is what the next fine-tune is made with, and the name of the user is in no path.
    job = client.post("/fine-tunes", json=BODY | {"project_id": 1}).json()
    assert job["dataset"] == dataset["id"]
    [file] = (service.config.folder / "datasets").iterdir()
    assert file.name.isascii()
    bad = upload(client, "bad.jsonl", rows + b'\n{"question": "Why?", "answer": ""}')
    assert "bad.jsonl line 41" in refused(bad, 422, "bad_dataset")
    assert bad.json()["report"]["total_problems"] == 1
    assert bad.json()["report"]["problems"][0]["code"].startswith("data.")


def test_a_dataset_that_cannot_be_recorded_is_not_kept(
    client: httpx.Client, service: Service, rows: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.post("/projects", json={"name": "One"})

    def full() -> Any:
        raise OutputError("the disk is full")

    monkeypatch.setattr(service.datasets._database, "changing", full)
    assert refused(upload(client, "a.jsonl", rows), 503, "unavailable") == "the disk is full"
    assert list((service.config.folder / "datasets").iterdir()) == []


def wide_csv() -> bytes:
    names = ",".join(f"c{number}" for number in range(20_000))
    return f"question,answer,{names[:90_000]}\n".encode()


def test_text_in_another_encoding_is_kept_as_utf8(client: httpx.Client, service: Service) -> None:
    client.post("/projects", json={"name": "One"})
    content = ("question,answer\r\n" + "".join(f"Вопрос {n},Ответ {n}\r\n" for n in range(20))).encode("cp1251")
    refused = upload(client, "a.csv", content)
    assert refused.status_code == 422
    assert "looks like windows-1251 text" in refused.json()["detail"]
    taken = client.post("/projects/1/datasets", data={"encoding": " windows-1251"}, files={"file": ("a.csv", content)})
    assert taken.status_code == 201, taken.text
    [kept] = (service.config.folder / "datasets").iterdir()
    assert kept.read_bytes() == content.decode("cp1251").encode()
    assert taken.json()["size"] == kept.stat().st_size
    unknown = client.post("/projects/1/datasets?encoding=rot13", files={"file": ("a.csv", content)})
    assert unknown.status_code == 422
    assert "rot13 is not a character encoding" in unknown.json()["detail"]
    for name in ("no such", "'", "x" * 41):
        refused = client.post("/projects/1/datasets", data={"encoding": name}, files={"file": ("a.csv", content)})
        assert refused.status_code == 422
        assert len(refused.json()["detail"]) < 200
    schema = client.get("/openapi.json").json()["paths"]["/api/v1/projects/{project_id}/datasets"]["post"]
    [form] = schema["requestBody"]["content"].values()
    assert form["schema"]["properties"]["encoding"]["maxLength"] == 40
    assert list((service.config.folder / "datasets").iterdir()) == [kept]


def test_columns_under_other_names(client: httpx.Client) -> None:
    client.post("/projects", json={"name": "One"})
    content = ("Вопрос;Ответ\r\n" + "".join(f"Вопрос {n};Ответ {n}\r\n" for n in range(20))).encode("cp1251")
    answer = upload(client, "a.csv", content)
    refused(answer, 422, "bad_dataset")
    offer = answer.json()["offer"]
    assert offer["encodings"][0]["name"] == "windows-1251"
    assert offer["columns"] == ["Вопрос", "Ответ"]
    asked = {"encoding": "windows-1251", "columns": "question=Вопрос,answer=Ответ"}
    taken = client.post("/projects/1/datasets", params=asked, files={"file": ("a.csv", content)})
    assert taken.status_code == 201, taken.text
    assert taken.json()["report"]["sources"][0]["columns_used"] == {"question": "Вопрос", "answer": "Ответ"}
    params = MODEL | {"base_model_name": "some/model"}
    assert client.post("/fine-tunes", json={"project_id": 1, "fine_tuning_params": params}).status_code == 202
    asked["columns"] = "label=Ответ"
    refused(client.post("/projects/1/datasets", params=asked, files={"file": ("a.csv", content)}), 422, "bad_columns")


def test_pairs_of_answers_are_learnt_as_preferences(client: httpx.Client, service: Service) -> None:
    rows = [{"question": f"{n}?", "chosen": f"It is {n}.", "rejected": "No idea."} for n in range(30)]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    client.post("/projects", json={"name": "One"})
    dataset = upload(client, "pairs.jsonl", content).json()
    assert dataset["format"] == "preference"
    params = {"use_llm_judge": False, "base_model_name": "tiny", "n_trials": 5}
    started = client.post(
        "/fine-tunes", json={"project_id": 1, "fine_tuning_params": params, "dataset_id": dataset["id"]}
    )
    assert started.status_code == 202, started.text
    with service.jobs._database.reading() as session:
        config = composed(session.get_one(Job, started.json()["id"]).overrides)
    assert (config.training.method, config.data.columns.prompt) == ("dpo", "question")
    assert "training.dpo_beta" in config.search.space


def test_rows_that_are_too_long_are_told_before_the_start(client: httpx.Client, service: Service, rows: bytes) -> None:
    client.post("/projects", json={"name": "One"})
    long = [{"question": "Why?", "answer": "x" * 1500}, {"question": "x" * 1900, "answer": "y"}]
    upload(client, "long.jsonl", rows + b"\n" + "\n".join(map(json.dumps, long)).encode())
    body = {"project_id": 1, "fine_tuning_params": MODEL}
    said = refused(client.post("/fine-tunes", json=body), 409, "rows_too_long")
    assert said.startswith("2 of 42 rows are too long for tiny: the longest has 19")
    assert "drop (2 are left out) or truncate (" in said
    assert "dataset-" not in said
    job = client.post("/fine-tunes", json=body | {"overlong": "drop"}).json()
    with service.jobs._database.reading() as session:
        assert "data.overlong=drop" in session.get_one(Job, job["id"]).overrides
    body["dataset_id"] = "demo"
    assert client.post("/fine-tunes", json=body).json()["dataset"] is None


def parquet_bomb() -> bytes:
    """Some KB that become 400 MB."""
    words = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 200_000, pyarrow.int32()), ["x" * 1000])
    content = io.BytesIO()
    parquet.write_table(pyarrow.table({"question": words, "answer": words}), content, compression="zstd")
    return content.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "status"),
    [
        ("../../etc/passwd", b"root", 422),
        ("bomb.parquet", parquet_bomb(), 422),
        ("rows.jsonl.gz", gzip.compress(b'{"question":"a","answer":"b"}\n' * 1000), 422),
        ("bomb.jsonl", gzip.compress(b"\0" * 5_000_000), 422),
        ("binary.csv", bytes(range(256)) * 100, 422),
        ("wide.csv", wide_csv(), 422),
        ("empty.jsonl", b"", 422),
        (".jsonl", b"{}", 422),
        ("x" * 300 + ".jsonl", b"{}", 422),
        ("large.jsonl", b'{"question":"a","answer":"b"}\n' * 4000, 413),
    ],
)
def test_uploads_that_are_refused_leave_nothing(
    client: httpx.Client,
    service: Service,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    content: bytes,
    status: int,
) -> None:
    monkeypatch.setenv("LORAHYDRA_CACHE", str(tmp_path / "cache"))
    client.post("/projects", json={"name": "One"})
    answer = upload(client, name, content)
    assert answer.status_code == status, answer.text
    assert "\n" not in answer.json()["detail"]
    assert str(tmp_path) not in answer.json()["detail"]
    assert list((service.config.folder / "datasets").iterdir()) == []
    assert not (tmp_path / "cache").exists()
    assert client.get("/projects/1/datasets").json()["total"] == 0


def test_an_endless_upload_is_cut_off(client: httpx.Client, service: Service) -> None:
    client.post("/projects", json={"name": "One"})

    def endless() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
        for _ in range(2000):
            yield b"x" * 65536

    try:
        answer = client.post(
            "/projects/1/datasets", content=endless(), headers={"Content-Type": "multipart/form-data; boundary=x"}
        )
        assert answer.status_code == 413
    except httpx.TransportError:
        pass  # cut off while it was still sending
    wait_for(lambda: list((service.config.folder / "datasets").iterdir()) == [])


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{}", "application/json", 415),
        (b"", "multipart/form-data", 415),
        (b"rubbish", "multipart/form-data; boundary=x", 400),
        (
            b'--x\r\nContent-Disposition: form-data; name="other"\r\n\r\n1\r\n--x--\r\n',
            "multipart/form-data; boundary=x",
            422,
        ),
        (
            b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n{}',
            "multipart/form-data; boundary=x",
            400,
        ),
    ],
)
def test_forms_that_cannot_be_read(
    client: httpx.Client, service: Service, content: bytes, kind: str, status: int
) -> None:
    client.post("/projects", json={"name": "One"})
    answer = client.post("/projects/1/datasets", content=content, headers={"Content-Type": kind})
    assert answer.status_code == status, answer.text
    assert list((service.config.folder / "datasets").iterdir()) == []


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"{", 422),
        (b"\xff\xfe", 422),
        (b'{"name": "\\ud800"}', 422),
        (b'{"name": "\\u0000"}', 422),
        (b"[" * 60_000, 400),
        (b'{"name": ' + b"9" * 5000 + b"}", 400),
        (b'{"name": "' + b"x" * 300_000 + b'"}', 413),
    ],
)
def test_bodies_that_cannot_be_read(client: httpx.Client, content: bytes, status: int) -> None:
    answer = client.post("/projects", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    assert set(answer.json()) - {"reason"} == {"detail", "code"}


def test_bodies_of_unknown_length_are_cut_off(client: httpx.Client) -> None:
    pieces = (b" " * 150_000 for _ in range(2))
    answer = client.post("/projects", content=pieces, headers={"Content-Type": "application/json"})
    refused(answer, 413, "too_large")
    refused(client.post("/projects", content=(b"{}" for _ in range(1))), 415, "unsupported_media_type")


def test_a_mistake_of_the_server_shows_no_trace(
    make_client: Callable[..., httpx.Client], service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = make_client()
    monkeypatch.setattr(service.choices, "judges", lambda: 1 // 0)
    assert refused(client.get("/judges"), 500, "internal") == "the server made a mistake: see its log"


def test_events_end_with_the_job(client: httpx.Client) -> None:
    client.post("/fine-tunes", json=BODY)
    seen = io.StringIO()
    with client.stream("GET", "/fine-tunes/1/events", timeout=SECONDS) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            seen.write(f"{line}\n")
            if line.startswith("data:") and '"queued"' in line:
                client.post("/fine-tunes/1/cancel")
    events = [line for line in seen.getvalue().splitlines() if line.startswith("event:")]
    assert events == ["event: state", "event: state"]


def test_health_says_when_no_fine_tune_can_start(
    client: httpx.Client, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert client.get("/health").status_code == 200

    def unreachable() -> bool:
        raise OutputError("the database cannot be reached")

    monkeypatch.setattr("lorahydra.service.supervisor.ERROR_SECONDS", 0.1)
    monkeypatch.setattr(service.supervisor._database, "still_mine", unreachable)
    wait_for(lambda: client.get("/health").status_code == 503)
    assert refused(client.get("/health"), 503, "unavailable") == "the database cannot be reached"
    monkeypatch.undo()
    wait_for(lambda: client.get("/health").status_code == 200)


def test_judged_answers_come_first(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [["a", None], ["b", 80.0], ["c", None], ["d", 60.0]]
    table = json.dumps({"columns": ["prompt", "judge_score"], "data": rows})
    monkeypatch.setattr(service.stores, "progress", lambda _: Progress(best_run="1", best_trial=0))
    monkeypatch.setattr("lorahydra.tracking.read_text", lambda *_: table)
    job = service.jobs.start(123, FineTuneParams(False, None, "tiny", 5))
    examples = service.stores.examples(job, 3)
    assert [(one.prompt, one.judge_score) for one in examples.items] == [("b", 80.0), ("d", 60.0), ("a", None)]
    assert examples.total == 4


def test_a_log_that_overwrites_itself_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_bytes(b"first\n10%\r50%\r100%\nlast\n")
    assert log_tail(tmp_path, 2).text == "10%\r50%\r100%\nlast"
    assert log_tail(tmp_path, 9).text == "first\n10%\r50%\r100%\nlast"


def test_the_failure_is_that_of_the_last_attempt(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("lorahydra: interrupted\n")
    begin = log.stat().st_size
    with log.open("a") as stream:
        stream.write("Traceback\nRuntimeError: no memory\n")
    assert _last_word(log, begin) == "RuntimeError: no memory"
    assert _last_word(log, 0) == "interrupted"


def test_metrics_and_docs(client: httpx.Client) -> None:
    client.post("/fine-tunes", json=BODY)
    metrics = client.get("/metrics").text
    assert 'lorahydra_jobs{state="queued"} 1' in metrics
    assert 'lorahydra_requests_total{status="202"} 1' in metrics
    docs = client.get("/docs").text
    assert "openapi.json" in docs
    assert "http" not in docs.replace("http://127.0.0.1", "")
    described = client.get("/openapi.json").json()
    assert set(described["paths"]["/api/v1/fine-tunes"]["post"]["responses"]) >= {"202", "404", "409", "422", "429"}
