"""Real studies under a server that is killed, a study that is killed, and people who change their mind."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sqlite3
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.judges.wire import KEY, JudgeServer, judge_server
from tests.judges.wire import MODEL as JUDGE_MODEL
from tests.service.one_winner import winners
from tests.service.served import MODEL, Served, refused
from tests.service.test_deletions import PHRASE, files_with
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.service]


def start(server: Served, project: int, **more: Any) -> int:
    answer = server.post("/fine-tunes", {"project_id": project, "fine_tuning_params": MODEL, **more})
    assert answer.status_code == 202, answer.text
    return int(answer.json()["id"])


def numbers(server: Served, job: int) -> list[int]:
    """Trials of a job that count."""
    rows = server.client.get(f"/fine-tunes/{job}/leaderboard").json()
    return sorted(row["number"] for row in rows if row["state"] == "complete")


@pytest.fixture
def judge() -> Iterator[JudgeServer]:
    with judge_server() as server:
        yield server


def runs_in(database: Path) -> int:
    """All runs of a store."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return int(connection.execute("select count(*) from runs").fetchone()[0])


def test_nothing_is_lost_and_nothing_runs_twice(
    make_server: Callable[..., Served], rows: bytes, judge: JudgeServer
) -> None:
    judged = (f"--set=judges.gemini.base_url={judge.gemini}", f"--set=judges.gemini.model={JUDGE_MODEL}")
    server = make_server(*judged, GEMINI_API_KEY=KEY)
    server.start(forks_jobs=False)
    project = server.post("/projects", {"name": f"Support for {PHRASE}"}).json()["id"]
    rows = b"\n".join(
        line.replace(b'"question": "', b'"question": "%b: ' % PHRASE.encode()) for line in rows.splitlines()
    )
    uploaded = server.client.post(f"/projects/{project}/datasets", files={"file": (f"{PHRASE}.jsonl", rows)})
    assert uploaded.status_code == 201, uploaded.text
    first = start(server, project, fine_tuning_params=MODEL | {"use_llm_judge": True, "judge_model_id": "gemini"})
    second, third = (start(server, project, fine_tuning_params=MODEL | {"n_trials": n}) for n in (7, 5))

    # One runs and two wait when the server is killed.
    server.wait_for_trial(first)
    running_job = server.job(first)
    assert running_job["seconds_left"] > 0 or running_job["stage"]
    assert 0 < running_job["validation_baseline"]["combined"] < 1
    assert [server.job(n)["state"] for n in (first, second, third)] == ["running", "queued", "queued"]
    assert [server.job(n)["place"] for n in (second, third)] == [1, 2]
    running = {process.pid for process in server.processes(first)}
    server.kill()
    assert running == {process.pid for process in server.processes(first)}
    server.start()
    assert server.post(f"/fine-tunes/{third}/cancel").json()["state"] == "cancelled"

    # Another server on the same folder by mistake.
    other = server.run("--port", "1")
    assert other.returncode == 2
    assert len(other.stderr.strip().splitlines()) == 1

    done = server.wait_for_state(first, "complete", "failed")
    assert done["state"] == "complete", done
    assert server.attempts(first) == 1
    assert numbers(server, first) == [0, 1, 2, 3, 4]
    assert done["test_score"] is not None
    said = winners(server.client, first, server.folder)
    assert set(said.values()) == {done["best_trial"]}, said
    archive = zipfile.ZipFile(io.BytesIO(server.client.get(f"/fine-tunes/{first}/adapter").content))
    files = {"adapter_config.json", "adapter_model.safetensors", "lorahydra.json", "generation_config.json"}
    assert set(archive.namelist()) == {f"fine-tune-{first}/{name}" for name in (*files, "README.md")}
    assert "PeftModel.from_pretrained" in archive.read(f"fine-tune-{first}/README.md").decode()
    examples = server.client.get(f"/fine-tunes/{first}/examples").json()
    assert examples["split"] == "test"
    assert examples["items"][0]["baseline_answer"] is not None
    assert all(item["judge_reason"] and 0 <= item["judge_score"] <= 100 for item in examples["items"])
    assert judge.calls > 0
    board = server.client.get(f"/fine-tunes/{first}/leaderboard.csv").text
    assert board in {file.read_text() for file in server.folder.glob("mlartifacts/**/leaderboard.csv")}
    written = b"".join(file.read_bytes() for file in server.folder.rglob("*") if file.is_file())
    assert KEY.encode() not in written

    # The second one is cancelled while it runs, and resumed.
    server.wait_for_trial(second)
    tree = server.processes(second)
    assert server.post(f"/fine-tunes/{second}/cancel").json()["state"] == "cancelling"
    server.wait_for_state(second, "cancelled")
    assert tree
    assert not server.processes(second)
    # Nothing is before it in the queue.
    assert server.post(f"/fine-tunes/{second}/resume").json()["state"] in ("queued", "starting")

    # Then its processes are killed, which is not its end either.
    wait_for(lambda: len(server.processes(second)) > 1)
    assert "is running" in refused(server.client.delete(f"/projects/{project}"), 409, "still_running")
    os.killpg(server.processes(second)[0].pid, signal.SIGKILL)
    done = server.wait_for_state(second, "complete", "failed")
    assert done["state"] == "complete", done
    assert done["resumptions"] == 1
    assert len(numbers(server, second)) == 7
    assert server.attempts(second) == 3

    # It goes on with one more trial, and names its winner again.
    assert server.post(f"/fine-tunes/{second}/continue", {"n_trials": 8}).status_code == 202
    done = server.wait_for_state(second, "complete", "failed")
    assert (done["state"], done["trials_finished"], done["failure"]) == ("complete", 8, None)
    assert len(numbers(server, second)) == 8
    assert done["best_trial"] in numbers(server, second)
    assert done["verdict"] == "too_few_examples"
    assert done["test_low"] <= done["test_score"] <= done["test_high"]
    compared = server.client.get(f"/fine-tunes/{first}/comparison/{second}").json()
    assert compared["obstacle"] == "other_scoring"  # only the first one has a judge
    assert server.job(third)["state"] == "cancelled"
    assert not (server.folder / "jobs" / str(third)).exists()

    # All of it is deleted, by a server that is killed meanwhile and by the next one.
    places = (server.folder.parent, Path(os.environ["LORAHYDRA_CACHE"]))
    before = {file.name.removesuffix("-wal") for place in places for file in files_with(PHRASE, place)}
    assert {"mlflow.db", "service.db", "table.arrow", "answers.json", "predictions.json"} <= before
    plan = server.client.get(f"/projects/{project}/deletion").json()
    assert [one["id"] for one in plan["fine_tunes"]] == [first, second, third]
    assert plan["registered_models"] == [f"lorahydra-fine-tune-{number}" for number in (first, second)]
    # The trial that was running when its processes were killed may have left a run of its own.
    assert plan["runs"] == runs_in(server.folder / "mlflow.db") >= 1 + 5 + 1 + 7
    assert plan["size"] > plan["runs_size"] > 0
    answer = server.client.delete(f"/projects/{project}", params={"digest": plan["digest"]})
    assert answer.status_code == 202, answer.text
    server.kill()
    server.start()
    assert server.client.get(f"/projects/{project}").status_code == 404
    wait_for(lambda: server.client.get("/deletions/1").json()["ended"] is not None)
    assert [file for place in places for file in files_with(PHRASE, place)] == []
    for folder in ("jobs", "datasets", "caches"):
        assert list((server.folder / folder).iterdir()) == []
    assert server.stop() == 0


def test_a_study_that_cannot_run_says_why_and_the_server_leaves_it_running(make_server: Callable[..., Served]) -> None:
    nowhere = ("--set", "judges.gemini.base_url=http://127.0.0.1:9", "--set", "judge.max_retries=0")
    server = make_server(*nowhere, GEMINI_API_KEY="none")
    server.start()
    # The two bodies of the documentation, as they are.
    judged = {"use_llm_judge": True, "judge_model_id": "gemini", "base_model_name": "Qwen/Qwen3-0.6B", "n_trials": 20}
    unjudged = {"use_llm_judge": False, "base_model_name": "Qwen/Qwen3-0.6B", "n_trials": 20}
    for number, params in enumerate((judged, unjudged), start=1):
        answer = server.post("/fine-tunes", {"project_id": 123, "fine_tuning_params": params})
        assert answer.status_code == 202, answer.text
        assert answer.json()["id"] == number
    assert server.client.get(f"http://127.0.0.1:{server.port}/").headers["content-type"].startswith("text/html")
    # There is neither a judge nor a hub here.
    for number, reason in ((1, "judge gemini is unavailable: no connection"), (2, "Qwen/Qwen3-0.6B")):
        failed = server.wait_for_state(number, "failed")
        assert reason in failed["failure"]
        assert "\n" not in failed["failure"]
    # One that goes on for longer than the server needs to stop.
    running = start(server, 123, fine_tuning_params=MODEL | {"n_trials": 100})
    wait_for(lambda: bool(server.processes(running)))
    assert server.stop() == 0
    assert server.processes(running)
    assert "continue without the server" in server.log.read_text()
