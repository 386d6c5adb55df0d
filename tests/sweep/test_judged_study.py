"""A study with a judge on a loopback server: its race, outages, and that no verdict is paid for twice."""

from __future__ import annotations

import contextlib
import csv
import json
import re
import signal
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tests.judges.wire import KEY, MODEL, JudgeServer, judge_server
from tests.support.programs import ProgramRunner
from tests.support.questions import write_questions
from tests.support.stores import client_of, runs_of

from lorahydra import LoRATuner
from lorahydra.cli.commands import commands
from lorahydra.errors import JudgeError, JudgeSetupError
from lorahydra.names import TEST_PREDICTIONS_FILE, State
from lorahydra.sweep.catalog import find_study

pytestmark = [pytest.mark.slow, pytest.mark.service]


@pytest.fixture(autouse=True)
def _place(place: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.chdir(place)


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    """Close the connections of the session that the process keeps."""
    from lorahydra.judges import loading

    yield
    loading.close_session()


def tuner(model: Path, server: JudgeServer, *overrides: str, n_trials: int = 3) -> LoRATuner:
    rows = write_questions(Path("rows.jsonl"), 60)
    settings = [
        *("model.device=cpu", "evaluation=minilm", "evaluation.max_new_tokens=6", "training.max_steps=2"),
        *("data.validation_fraction=0.3", "tracking.system_metrics=false", "hydra/sweeper/pruner=none"),
        *(f"judge.model={MODEL}", f"judge.base_url={server.gemini}", "judge.n_examples=2", "judge.finalists=2"),
        "training.learning_rate=tag(log, interval(1e-1, 9e-1))",
    ]
    return LoRATuner(
        model=model, data=rows, judge="gemini", n_trials=n_trials, study="judged", overrides=[*settings, *overrides]
    )


CHANGES = [
    *("judge.timeout=30", "judge.concurrency=2", "judge.requests_per_minute=100000", "judge.max_retries=3"),
    *("judge.overlap=false", "judge.prompt_price=1", "judge.completion_price=2", "judge.max_cost=1"),
    *("judge.trace=false", "judge.cache=false", "judge.repeats=2", "judge.finalists=3"),
    *("judge.api_key_env=[OTHER_KEY,GEMINI_API_KEY]", "judge.verify_ssl_certs=true"),
    *("evaluation.batch_size=3", "evaluation.bertscore_batch_size=5", "evaluation.bootstrap_samples=200"),
    *("training.save_steps=50", "training.logging_steps=2", "training.per_device_eval_batch_size=3"),
    *("tracking.retry_seconds=5", "tracking.log_model=none"),
]
"""With another address of the judge, every kind of what may change while a study goes on."""


def test_the_best_of_the_last_round_wins_whatever_was_changed_since(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def write_plots(*_: Any) -> None:
        raise ValueError("cannot draw")

    with judge_server() as server, monkeypatch.context() as patched:
        patched.setattr("lorahydra.sweep.conclusion.write_plots", write_plots)
        first = tuner(tiny_model, server, n_trials=2).run()
    assert "The plots of the study are missing: ValueError: cannot draw" in caplog.text
    assert client_of(tmp_path).get_model_version_by_alias("lorahydra-judged", "champion").run_id == first.best.run_id
    assert not (tmp_path / "outputs" / "judged" / "study").exists()
    metrics = client_of(tmp_path).get_run(first.run_id or "").data.metrics
    assert {"test/judge_score", "baseline/judge_score", "test/combined"} <= set(metrics)
    assert first.best.judge_score is not None
    table = json.loads(
        Path(client_of(tmp_path).download_artifacts(first.run_id, TEST_PREDICTIONS_FILE)).read_text("utf-8")
    )
    scores = [row[table["columns"].index("judge_score")] for row in table["data"]]
    assert len(scores) > 2
    assert None not in scores, "all test examples are judged, not only two"
    with judge_server() as server:
        result = tuner(tiny_model, server, *CHANGES).run()
        examples = len({request.user for request in server.requests})
    finalists = [run for run in runs_of(tmp_path, "trial") if "final/combined" in run.data.metrics]
    assert len({run.data.metrics["final/judge_coverage"] for run in finalists}) == 1
    best = max(finalists, key=lambda run: run.data.metrics["final/combined"])
    assert result.best.run_id == best.info.run_id
    assert examples > 0
    [parent] = runs_of(tmp_path, "study")
    assert parent.data.tags["lorahydra.best_run"] == best.info.run_id
    assert (tmp_path / "outputs" / "judged" / "study" / "plots.html").is_file()


def test_a_service_that_changes_its_model_stops_the_study(tiny_model: Path, tmp_path: Path) -> None:
    with judge_server() as server:
        tuner(tiny_model, server, n_trials=1).run()
        server.answers_as = "judge-model-002"
        with pytest.raises(JudgeSetupError, match="answers as judge-model-002 now, and as judge-model-001 when study"):
            tuner(tiny_model, server).run()
    assert [trial.state for trial in find_study("judged").trials] == [State.COMPLETE, State.INTERRUPTED]


def test_repeats_are_judged_as_trials_are_and_trained_once(tiny_model: Path, tmp_path: Path) -> None:
    mode = "good"
    settings = ("judge.n_examples=6", "judge.finalists=1", "judge.timeout=20", "judge.max_retries=0")
    with judge_server(lambda request, attempt: mode) as server:
        before = tuner(tiny_model, server, *settings, n_trials=2).run()
        assert before.choice is not None
        assert len(before.choice.set) == 2
        mode = "503"
        with pytest.raises(JudgeError):
            tuner(tiny_model, server, *settings, "search.seeds=1", n_trials=2).run()
        [kept] = tmp_path.glob("outputs/judged/repeats/*/adapter/adapter_model.safetensors")
        written = kept.stat().st_mtime_ns
        mode = "good"
        result = tuner(tiny_model, server, *settings, "search.seeds=1", n_trials=2).run()
    assert result.choice is not None
    assert (result.choice.seeds, result.choice.examples) == (1, 6)
    assert kept.stat().st_mtime_ns == written
    repeats = runs_of(tmp_path, "repeat")
    assert sorted(run.data.tags["lorahydra.repeats"] for run in repeats) == ["0", "1"]
    assert {run.data.tags["lorahydra.state"] for run in repeats} == {"complete"}
    assert {run.data.params["judge.n_examples"] for run in repeats} == {"6"}
    assert all("eval/judge_score" in run.data.metrics for run in repeats)


def test_repeats_leave_money_for_the_test_split(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = ("judge.n_examples=6", "judge.finalists=1", "judge.prompt_price=1", "judge.completion_price=2")

    def run(max_cost: str, *, seeds: int = 1) -> Any:
        return tuner(tiny_model, server, *settings, max_cost, f"search.seeds={seeds}", n_trials=2).run().choice

    with judge_server() as server:
        first = run("judge.max_cost=1", seeds=0)
        assert len(first.set) == 2
        assert run("judge.max_cost=1e-6") == first, "the rest of the verdicts are cached"
        assert "Not all repeats are judged: half of judge.max_cost is left for the test split" in caplog.text
        assert find_study("judged").state is State.COMPLETE
        written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("outputs/judged/repeats/*/adapter/*")}
        assert written
        assert run("judge.max_cost=1").seeds == 1
    assert written.items() <= {path: path.stat().st_mtime_ns for path in written}.items(), "nothing is trained twice"


def test_answers_are_kept_and_judged_again(tiny_model: Path, tmp_path: Path) -> None:
    """By the study that goes on, and by `judges rejudge`; study and MLflow agree at every step."""
    mode = "503"
    patience = ("judge.timeout=20", "judge.max_retries=0")
    with judge_server(lambda request, attempt: mode) as server:

        def goes_on(n_trials: int) -> Any:
            return tuner(tiny_model, server, *patience, n_trials=n_trials).run()

        def rejudge(folder: str) -> Result:
            return CliRunner().invoke(commands, ["judges", "rejudge", folder, "judge.timeout=20"])

        with pytest.raises(JudgeError, match=r"are kept; the study is kept, go on with: lorahydra studies resume jud"):
            goes_on(1)
        assert agreed(tmp_path) == {0: State.INTERRUPTED}
        mode = "good"
        goes_on(2)
        assert agreed(tmp_path) == {0: State.INTERRUPTED, 1: State.COMPLETE, 2: State.COMPLETE}
        mode = "blocked"
        [failed] = [trial for trial in goes_on(3).trials if trial.state is State.FAILED]
        assert failed.failure.endswith(f"go on with: lorahydra judges rejudge {tmp_path}/outputs/judged/3")
        assert agreed(tmp_path)[3] is State.FAILED
        assert isinstance(rejudge("outputs/judged/3").exception, JudgeError)
        assert agreed(tmp_path) == {
            **{0: State.INTERRUPTED, 1: State.COMPLETE, 2: State.COMPLETE},
            **{3: State.INTERRUPTED, 4: State.FAILED},
        }
        mode = "good"
        done = rejudge("outputs/judged")
        assert done.exit_code == 0, done.output
        assert agreed(tmp_path)[5] is State.COMPLETE
        assert find_study("judged").state is State.INTERRUPTED, "a winner is to be named"
        result = goes_on(3)
    assert len(runs_of(tmp_path, "trial")) == 3, "nothing was trained twice"
    assert sorted(path.parent.name for path in tmp_path.glob("outputs/judged/*/adapter")) == ["0", "2", "3"]
    finalists = [run for run in runs_of(tmp_path, "trial") if "final/combined" in run.data.metrics]
    best = max(finalists, key=lambda run: run.data.metrics["final/combined"])
    assert result.best.run_id == best.info.run_id
    assert find_study("judged").state is State.COMPLETE
    [parent] = runs_of(tmp_path, "study")
    assert parent.data.tags["lorahydra.state"] == "complete"


def test_a_study_that_is_killed_while_it_judges_pays_for_what_is_missing_only(
    tiny_model: Path, tmp_path: Path, programs: ProgramRunner
) -> None:
    # The second answer hangs until the process is gone.
    with judge_server(lambda request, attempt: "slow" if server.calls == 2 and attempt == 1 else "good") as server:
        judge = ("judge.n_examples=4", "judge.concurrency=1", "judge.finalists=1", "judge.self_test=false")
        study = tuner(tiny_model, server, *judge, "evaluation.baseline=false", n_trials=1)
        running = programs.start(["-m", "lorahydra", "train", "-m", *study.overrides], tmp_path)
        answers = tmp_path / "outputs" / "judged" / "0" / "answers.json"
        running.wait_for(lambda: server.calls == 2 and answers.is_file())
        running.kill()
        assert running.wait() == -signal.SIGKILL
        done = programs.run(["-m", "lorahydra", "studies", "resume", "judged"], tmp_path)
    assert done.returncode == 0, done.stderr
    asked = Counter(request.user for request in server.requests)
    assert sorted(asked.values(), reverse=True)[:2] == [2, 1], "only the answer that hung is asked about again"
    assert server.requests[1].user == asked.most_common(1)[0][0]
    assert agreed(tmp_path) == {0: State.INTERRUPTED, 1: State.COMPLETE}
    assert len(list(tmp_path.glob("outputs/judged/*/adapter"))) == 1, "nothing was trained twice"
    assert find_study("judged").state is State.COMPLETE

    # A study that is refused to go on with other settings stays as it was, with workers of its own, too.
    other = ["hydra/launcher=joblib", "hydra.sweeper.n_jobs=2", "hydra.sweeper.n_trials=3", "training.max_steps=3"]
    refused = programs.run(["-m", "lorahydra", "studies", "resume", "judged", *other], tmp_path)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1), refused.stderr
    assert "training.max_steps" in refused.stderr
    [parent] = runs_of(tmp_path, "study")
    assert (parent.info.status, parent.data.tags["lorahydra.state"]) == ("FINISHED", "complete")


def test_a_race_that_is_killed_goes_on_in_two_processes_and_no_verdict_is_asked_for_twice(
    tiny_model: Path, tmp_path: Path, programs: ProgramRunner, own_cache: Path
) -> None:
    # After the first verdicts on two trials, the third one of the race hangs until the process is gone.
    with judge_server(lambda request, attempt: "slow" if server.calls == 13 and attempt == 1 else "good") as server:
        judge = ("judge.n_examples=5", "judge.concurrency=1", "judge.self_test=false", "search.indifference=0")
        study = tuner(tiny_model, server, *judge, "evaluation.baseline=false", n_trials=2)
        running = programs.start(["-m", "lorahydra", "train", "-m", *study.overrides], tmp_path)
        running.wait_for(lambda: server.calls == 13 and cached(own_cache) == 12)
        running.kill()
        assert running.wait() == -signal.SIGKILL
        resumed = [programs.start(["-m", "lorahydra", "studies", "resume", "judged"], tmp_path) for _ in range(2)]
        assert [process.wait() for process in resumed] == [0, 0]
        asked = Counter(request.user for request in server.requests)
    assert sorted(asked.values(), reverse=True)[:2] == [2, 1], "only the answer that hung is asked about again"
    entry = find_study("judged")
    assert entry.state is State.COMPLETE
    assert entry.choice is not None
    assert entry.choice.examples > 5
    assert sum(entry.choice.p_best.values()) == pytest.approx(1, abs=1e-3)
    [parent] = runs_of(tmp_path, "study")
    assert parent.data.metrics["choice/set_size"] == len(entry.choice.set)
    assert parent.data.metrics["choice/regret_bound"] == pytest.approx(entry.choice.regret_bound)
    assert parent.data.metrics["choice/p_best"] == pytest.approx(entry.choice.p_best[entry.choice.winner], abs=1e-3)
    assert parent.data.tags["lorahydra.choice_set"] == ", ".join(map(str, entry.choice.set))
    shown = CliRunner().invoke(commands, ["studies", "show", "judged"]).output
    leaderboard = (tmp_path / "outputs" / "judged" / "leaderboard.csv").read_text()
    assert "p_best,in_set" in leaderboard
    assert f"Winner: trial {entry.choice.winner}, which has the highest combined" in shown
    # One winner everywhere: in the log, in MLflow's description and in the CSV, with the scores that chose it.
    winner = entry.choice.winner
    [row] = [row for row in csv.DictReader(leaderboard.splitlines()) if row["is_winner"] == "True"]
    assert (row["rank"], row["number"]) == ("1", str(winner))
    metrics = {record.number: record for record in entry.leaderboard}
    run = client_of(tmp_path).get_run(metrics[winner].run_id or "")
    assert float(row["final_combined"]) == pytest.approx(run.data.metrics["final/combined"])
    assert row["final_examples"] == str(entry.choice.examples)
    assert entry.leaderboard[0].number == winner
    assert re.search(rf"\| \*1\W+\| \[{winner}\]", parent.data.tags["mlflow.note.content"])
    assert (tmp_path / "outputs" / "judged" / "best" / "adapter_model.safetensors").read_bytes() == (
        tmp_path / "outputs" / "judged" / str(winner) / "adapter" / "adapter_model.safetensors"
    ).read_bytes()


def cached(cache: Path) -> int:
    """Number of verdicts in the cache."""
    with contextlib.closing(sqlite3.connect(cache / "judge" / "verdicts.sqlite")) as database:
        count: int = database.execute("SELECT COUNT(*) FROM verdicts").fetchone()[0]
    return count


def agreed(folder: Path) -> dict[int, State]:
    """States of the trials, of which each run in MLflow has its own."""
    records = find_study("judged").trials
    runs = {run.info.run_id: run for run in runs_of(folder, "trial")}
    owners = {record.run_id: record for record in records if record.run_id is not None}
    assert owners.keys() == runs.keys()
    for run_id, record in owners.items():
        tags = runs[run_id].data.tags
        assert (tags["lorahydra.state"], tags["lorahydra.trial_number"]) == (record.state, str(record.number))
        assert runs[run_id].info.run_name.startswith(f"{record.number}: ")
    return {record.number: record.state for record in records}
