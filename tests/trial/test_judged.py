"""A trial with a judge, on a tiny model and a loopback server: scores, records, faults and judging once more."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.judges.wire import KEY, MODEL, JudgeServer, Request, judge_server
from tests.support.models import scored_with
from tests.support.questions import write_questions
from tests.support.stores import client_of, runs_of

from lorahydra.cli.commands import commands
from lorahydra.config.compose import compose
from lorahydra.errors import ConfigError, JudgeBudgetError, JudgeError, JudgeSetupError, OutputError, TrainingError
from lorahydra.trial.finalists import judge_finalists
from lorahydra.trial.rejudge import rejudge
from lorahydra.trial.run import TrialResult, run_trial

pytestmark = [pytest.mark.slow, pytest.mark.service]


@pytest.fixture(autouse=True)
def _judge(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    """Close the connections of the session that the process keeps."""
    from lorahydra.judges import loading

    yield
    loading.close_session()


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_questions(tmp_path_factory.mktemp("rows") / "rows.jsonl")


class Trials:
    """Runs trials in one folder against one server."""

    def __init__(self, folder: Path, model: Path, encoder: Path, rows: Path) -> None:
        self.folder, self.model, self.encoder, self.rows = folder, model, encoder, rows

    def overrides(self, name: str, server: JudgeServer, *more: str) -> list[str]:
        return [
            "model=local",
            f"model.name_or_path={self.model}",
            "model.device=cpu",
            *scored_with(self.encoder),
            "evaluation.max_new_tokens=8",
            "data=local",
            f"data.train_file={self.rows}",
            "data.validation_fraction=0.3",
            "training.max_steps=2",
            "training.learning_rate=0.5",
            "lora.r=4",
            "judge=gemini",
            f"judge.model={MODEL}",
            f"judge.base_url={server.gemini}",
            f"tracking.uri=sqlite:///{self.folder / 'mlflow.db'}",
            "tracking.system_metrics=false",
            f"output_dir={self.folder / name}",
            *more,
        ]

    def __call__(self, name: str, server: JudgeServer, *more: str) -> TrialResult:
        overrides = self.overrides(name, server, *more)
        return run_trial(compose(overrides), overrides=overrides)

    @property
    def client(self) -> Any:
        return client_of(self.folder)

    def predictions(self, run_id: str, file: str = "eval/predictions.json") -> list[dict[str, Any]]:
        table = json.loads(Path(self.client.download_artifacts(run_id, file)).read_text("utf-8"))
        return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]


@pytest.fixture
def trials(place: Path, tiny_model: Path, tiny_encoder: Path, rows: Path) -> Trials:
    return Trials(place, tiny_model, tiny_encoder, rows)


def test_verdicts_are_scores_lines_and_records(trials: Trials, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    prices = ("judge.prompt_price=1", "judge.completion_price=2")
    with judge_server() as server:
        result = trials("one", server, *prices)
        asked = server.calls
    run = trials.client.get_run(result.run_id)
    metrics, tuned = run.data.metrics, result.scores.tuned

    assert tuned.verdicts is not None
    assert asked == 10, "five answers of the tuned model and five of the untuned one"
    assert metrics["judge/calls"] == asked
    assert metrics["judge/cache_hits"] == metrics["judge/retries"] == metrics["judge/failures"] == 0
    assert metrics["judge/prompt_tokens"] == 321 * asked
    assert metrics["judge/completion_tokens"] == 45 * asked
    assert metrics["judge/cost"] == pytest.approx(asked * (321 + 2 * 45) / 1e6)
    assert metrics["time/judge_s"] > 0
    assert metrics["eval/judge_coverage"] == metrics["baseline/judge_coverage"] == 1
    score = metrics["eval/judge_score"]
    assert score == tuned.verdicts.score
    combined = 0.4 * metrics["eval/bertscore_f1"] + 0.6 * score / 100
    assert metrics["eval/combined"] == pytest.approx(combined)
    assert result.combined == metrics["eval/combined"]
    assert metrics["eval/combined_low"] <= combined <= metrics["eval/combined_high"]
    assert metrics["eval/answer_length"] > 0
    assert run.data.tags["lorahydra.judge"] == "gemini"
    assert run.data.tags["lorahydra.judge_model"] == "judge-model-001"
    assert run.data.tags["lorahydra.judge_prompt"].startswith("v2-")

    table = trials.predictions(result.run_id)
    judged = [row for row in table if row["judge_score"] is not None]
    assert len(judged) == 5
    assert sum(row["judge_score"] for row in judged) / 5 == pytest.approx(score)
    assert all(row["judge_reason"].startswith("Вердикт") for row in judged)
    assert all("correctness " in row["judge_criteria"] for row in judged)
    assert all((row["baseline_judge_score"] is None) == (row["judge_score"] is None) for row in table)

    assert not [record.name for record in caplog.records if record.name.startswith(("httpx", "google_genai"))]
    lines = [record.getMessage() for record in caplog.records]
    bertscore = f"{metrics['eval/bertscore_f1']:.4f}"
    assert f"LLM judge on: gemini ({MODEL})" in lines
    assert f"LLM judge mean score: {score:.2f} (on 5 examples)" in lines
    assert f"Evaluation: BERTScore={bertscore}, LLM judge={score:.2f}, combined={combined:.4f}" in lines


def test_a_panel_is_recorded_with_each_of_its_judges(
    trials: Trials, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def plan(request: Request, attempt: int) -> str:
        return "503" if down and request.service == "openai" else "good"

    down = True
    with judge_server(plan) as server:
        overrides = [part for part in trials.overrides("one", server) if not part.startswith("judge")]
        overrides += [
            "judge=panel",
            "judge.max_retries=0",
            "judge.n_examples=4",
            f"judges.gemini.base_url={server.gemini}",
        ]
        overrides += [f"judges.openai.base_url={server.openai}"]
        overrides += [f"judges.{name}.model={MODEL}" for name in ("gemini", "openai")]
        with pytest.raises(JudgeError, match="judge openai is unavailable"):
            run_trial(compose(overrides), overrides=overrides)
        down = False
        scores = rejudge(trials.folder / "one", overrides=["judges.openai.concurrency=2"])
    [run] = runs_of(trials.folder)
    metrics, tags, verdicts = run.data.metrics, run.data.tags, scores.tuned.verdicts
    assert verdicts is not None
    parts = [metrics[f"eval/judge_score_{name}"] for name in ("gemini", "openai")]
    assert metrics["eval/judge_score"] == pytest.approx(sum(parts) / 2)
    assert metrics["eval/judge_coverage"] == metrics["eval/judge_coverage_openai"] == 1
    assert -1 <= metrics["judge/alpha"] <= 1
    assert (tags["lorahydra.judge"], tags["lorahydra.judge_model"]) == ("panel", "judge-model-001 + judge-model-001")
    assert "Judges of the panel: gemini " in caplog.text
    assert f"LLM judge on: panel ({MODEL} + {MODEL})" in caplog.messages


def test_every_call_is_a_trace_of_the_run(trials: Trials) -> None:
    import mlflow

    def plan(request: Request, attempt: int) -> str:
        return "503" if attempt == 1 else "good"

    with judge_server(plan) as server:
        result = trials("one", server, "judge.n_examples=2", "evaluation.baseline=false")
        silent = trials("two", server, "judge.trace=false", "judge.n_examples=3", "evaluation.baseline=false", "seed=3")
    mlflow.set_tracking_uri(f"sqlite:///{trials.folder / 'mlflow.db'}")
    experiment = trials.client.get_run(result.run_id).info.experiment_id
    traces = mlflow.search_traces(locations=[experiment], run_id=result.run_id, return_type="list")
    assert sorted(trace.info.state.value for trace in traces) == ["ERROR", "ERROR", "OK", "OK"]
    [ok, *_] = [trace for trace in traces if trace.info.state.value == "OK"]
    [span] = ok.data.spans
    assert next(iter(span.inputs)) == "question", "what differs comes first"
    assert "<<<ANSWER" in span.inputs["user"]
    assert ok.info.request_preview.startswith(f"{' '.join(span.inputs['question'].split())} → ")
    scores = {each.name: each.feedback.value for each in ok.info.assessments}
    assert scores["judge_score"] == span.outputs["score"]
    assert {"correctness", "style"} < set(scores)
    assert 0 <= span.outputs["score"] <= 100
    assert span.attributes["attempt"] == 2
    assert mlflow.search_traces(locations=[experiment], run_id=silent.run_id, return_type="list") == []


def test_a_second_trial_with_the_same_answers_calls_nobody(trials: Trials) -> None:
    with judge_server() as server:
        first = trials("one", server)
        asked = server.calls
        second = trials("two", server)
        assert server.calls == asked
    metrics = trials.client.get_run(second.run_id).data.metrics
    assert metrics["judge/calls"] == 0
    assert metrics["judge/cost"] == 0
    assert metrics["judge/cache_hits"] == 10
    assert second.combined == first.combined


def test_the_key_is_in_nothing_that_a_run_writes(
    trials: Trials, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    with judge_server() as server:
        trials("one", server)
    with judge_server(lambda request, attempt: "401") as server, pytest.raises(JudgeSetupError) as caught:
        trials("two", server)
    files = [path for path in trials.folder.rglob("*") if path.is_file() and "models" not in path.parts]
    assert len(files) > 10
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
    output = capfd.readouterr()
    for text in (str(caught.value), caplog.text, output.out, output.err):
        assert KEY not in text


def test_a_dead_judge_fails_the_trial_and_keeps_what_was_expensive(trials: Trials, capsys: Any) -> None:
    import mlflow

    up = False
    with judge_server(lambda request, attempt: "good" if up else "503") as server:
        with pytest.raises(JudgeError) as caught:
            trials("one", server, "judge.max_retries=1")
        folder = trials.folder / "one"
        assert str(caught.value).startswith("judge gemini is unavailable: server error: HTTP 503")
        assert f"go on with: lorahydra judges rejudge {folder}" in str(caught.value)
        [run] = runs_of(trials.folder)
        assert run.info.status == "FAILED"
        assert run.data.tags["lorahydra.failure"].startswith("JudgeError: judge gemini is unavailable")
        assert run.data.metrics["eval/bertscore_f1"] > 0
        assert run.data.metrics["eval/judge_coverage"] == 0
        assert "eval/combined" not in run.data.metrics
        assert (folder / "adapter" / "adapter_model.safetensors").is_file()
        assert trials.predictions(run.info.run_id)[0]["judge_score"] is None

        with pytest.raises(ConfigError, match=r"judge.model cannot be changed .* what can: judge.KEY=VALUE"):
            rejudge(folder, overrides=["judge.model=other"])
        up = True
        done = CliRunner().invoke(commands, ["judges", "rejudge", str(folder), "judge.timeout=20"])
        assert done.exit_code == 0, done.output
        assert "LLM judge" in done.output
        asked = server.calls
        rejudge(folder)
        assert server.calls == asked, "verdicts that are there are not asked for"
    run = trials.client.get_run(run.info.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["lorahydra.state"] == "complete"
    assert "lorahydra.failure" not in run.data.tags
    assert run.data.metrics["eval/judge_coverage"] == 1
    assert run.data.metrics["eval/combined"] > 0
    assert len(runs_of(trials.folder)) == 1
    mlflow.set_tracking_uri(None)


def test_a_spent_budget_says_how_to_go_on_and_what_judging_took_adds_up(trials: Trials) -> None:
    prices = ("judge.prompt_price=1000", "judge.completion_price=1000", "judge.max_output_tokens=100")
    with judge_server() as server:
        with pytest.raises(JudgeBudgetError, match=r"judge.max_cost=3.0 is used up .* judges rejudge"):
            trials("one", server, *prices, "judge.max_cost=3")
        asked, folder = server.calls, trials.folder / "one"
        rejudge(folder, overrides=["judge.max_cost=100"])
        assert server.calls == 10
        assert 0 < asked < 10
        judge_finalists([folder], overrides=["judge.max_cost=100"])
        calls = server.calls
    [run] = runs_of(trials.folder)
    assert run.data.metrics["judge/calls"] == calls
    assert run.data.metrics["judge/cost"] == pytest.approx(calls * (321 + 45) / 1000)
    assert run.data.tags["lorahydra.state"] == "complete"


def test_a_trial_that_is_going_on_is_left_alone(trials: Trials) -> None:
    refusals: list[str] = []

    def plan(request: Request, attempt: int) -> str:
        with pytest.raises(OutputError) as caught:
            rejudge(trials.folder / "one")
        refusals.append(str(caught.value))
        return "good"

    with judge_server(plan) as server:
        trials("one", server, "judge.overlap=false", "judge.n_examples=1", "evaluation.baseline=false")
    assert len(refusals) == 1
    assert "is still running: wait until it ends" in refusals[0]


def test_overrides_that_cannot_be_read(trials: Trials) -> None:
    with judge_server() as server:
        trials("one", server)
    for override in ("judge.timeout=[1", "judge.requests_per_minute=${x", "judge.timeout=a: b: c"):
        with pytest.raises(ConfigError):
            rejudge(trials.folder / "one", overrides=[override])


def test_old_answers_are_not_taken_for_new_ones(trials: Trials) -> None:
    with judge_server() as server:
        trials("one", server)
        with pytest.raises(TrainingError):
            trials("one", server, "training.learning_rate=1", "lora.lora_alpha=4096", "training.max_steps=200")
    assert not (trials.folder / "one" / "answers.json").exists()


def test_a_baseline_without_verdicts_is_left_out(trials: Trials, caplog: pytest.LogCaptureFixture) -> None:
    tuned: list[str] = []

    def plan(request: Request, attempt: int) -> str:
        if len(tuned) < 3:
            tuned.append(request.user)
        return "good" if request.user in tuned else "blocked"

    # Without overlap the tuned model's predictions are judged before the baseline's, one by one.
    options = ("judge.n_examples=3", "judge.max_retries=0", "judge.min_coverage=0.3")
    with judge_server(plan) as server:
        result = trials("one", server, *options, "judge.overlap=false", "judge.concurrency=1")
        untuned = [request.user for request in server.requests if request.user not in tuned]
    assert len(set(tuned)) == len(untuned) == 3
    assert result.scores.baseline is None
    assert result.scores.gain is None
    assert (
        "The judge gave no verdict on 3 of 3 predictions, which are not in its mean; most often: blocked" in caplog.text
    )
    assert "The untuned model is left out of the comparison" in caplog.text
    metrics = trials.client.get_run(result.run_id).data.metrics
    assert metrics["eval/combined"] == result.combined
    assert "baseline/combined" not in metrics
    assert metrics["baseline/bertscore_f1"] > 0

    # An example that is judged on one side only is in neither mean.
    stopped = {tuned[0], next(user for user in untuned if question(user) != question(tuned[0]))}
    with judge_server(lambda request, attempt: "blocked" if request.user in stopped else "good") as server:
        scores = rejudge(trials.folder / "one", overrides=[f"judge.base_url={server.gemini}"])
    metrics = trials.client.get_run(result.run_id).data.metrics
    assert scores.gain is not None
    assert scores.gain.count == 1
    for prefix in ("eval", "baseline"):
        combined = 0.4 * metrics[f"{prefix}/bertscore_f1"] + 0.6 * metrics[f"{prefix}/judge_score"] / 100
        assert metrics[f"{prefix}/combined"] == pytest.approx(combined)
    assert scores.gain.mean == pytest.approx(metrics["eval/combined"] - metrics["baseline/combined"])
    assert metrics["eval/judge_coverage"] == pytest.approx(2 / 3)


def question(user: str) -> str:
    match = re.search(r"What is \d+\+\d+", user)
    assert match is not None
    return match[0]


def test_a_missing_key_is_found_before_anything_is_loaded(trials: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GEMINI_API_KEY")
    monkeypatch.delenv("GOOGLE_API_KEY", raising=False)
    with judge_server() as server, pytest.raises(JudgeSetupError, match="GEMINI_API_KEY .or GOOGLE_API_KEY."):
        trials("one", server)
    assert not (trials.folder / "one").exists()
    assert runs_of(trials.folder) == []


def test_a_refused_key_is_found_before_anything_is_loaded(trials: Trials) -> None:
    with (
        judge_server(self_test=lambda request, attempt: "401") as server,
        pytest.raises(JudgeSetupError, match="judge gemini: key refused"),
    ):
        trials("one", server, "model.name_or_path=there/is-none", "data.train_file=nor-this.jsonl")
    assert not (trials.folder / "one").exists()
    assert runs_of(trials.folder) == []


def test_finalists_are_judged_on_everything(trials: Trials) -> None:
    with judge_server() as server:
        for number in range(3):
            trials(f"study/{number}", server, f"lora.r={2**number}")
        asked = server.calls
        folders = [trials.folder / "study" / str(number) for number in range(3)]
        ranking = judge_finalists(folders, overrides=["judge.finalists=2", "judge.repeats=2"])
        count = len(ranking[0].trial.predictions.examples.texts)
        assert server.calls > asked
        asked = server.calls
        command = ["judges", "finalists", str(trials.folder / "study"), "--set", "judge.finalists=2", "--set"]
        done = CliRunner().invoke(commands, [*command, "judge.repeats=2"])
        assert done.exit_code == 0, done.output
        assert server.calls == asked
    assert len(ranking) == 2
    assert ranking[0].tuned.combined.mean >= ranking[1].tuned.combined.mean
    verdicts = ranking[0].tuned.verdicts
    assert verdicts is not None
    assert verdicts.judged == count > 5
    assert all(len(each) == 2 for each in verdicts.verdicts)
    assert done.output.startswith(f"1. {ranking[0].trial.folder}: combined {ranking[0].tuned.combined.mean:.4f}")
    metrics = trials.client.get_run(ranking[0].trial.run_id).data.metrics
    assert metrics["final/combined"] == ranking[0].tuned.combined.mean
    assert metrics["final/judge_coverage"] == 1
    assert len(trials.predictions(ranking[0].trial.run_id, "final/predictions.json")) == count

    # An answer that stops one finalist's judging is left out of the other's mean, too.
    stopped: list[str] = []

    def plan(request: Request, attempt: int) -> str:
        stopped.append(request.user)
        return "blocked" if request.user == stopped[0] else "good"

    with judge_server(plan) as server:
        ranking = judge_finalists(
            folders, overrides=["judge.finalists=2", "judge.max_retries=0", f"judge.base_url={server.gemini}"]
        )
    for finalist in ranking:
        assert finalist.tuned.verdicts is not None
        assert finalist.tuned.verdicts.judged == count - 1
        metrics = trials.client.get_run(finalist.trial.run_id).data.metrics
        assert metrics["final/judge_score"] == finalist.tuned.verdicts.score


def test_trials_that_were_judged_differently_have_no_ranking(trials: Trials) -> None:
    with judge_server() as server:
        trials("one", server)
        trials("two", server, "judge/rubric=russian")
        with pytest.raises(
            ConfigError, match=r"differs from the others in judge\.rubric\..*: their scores cannot be compared"
        ):
            judge_finalists([trials.folder / "one", trials.folder / "two"])


def test_folders_without_answers(trials: Trials) -> None:
    (trials.folder / "empty").mkdir()
    for arguments in (["rejudge", "empty"], ["finalists", "empty"], ["rejudge", "nowhere"]):
        done = CliRunner().invoke(commands, ["judges", arguments[0], str(trials.folder / arguments[1])])
        assert isinstance(done.exception, OutputError)
    (trials.folder / "empty" / "answers.json").write_text("{")
    with pytest.raises(OutputError, match="cannot be read .* run the trial again"):
        rejudge(trials.folder / "empty")


def test_a_trial_without_a_judge_cannot_be_judged_again(trials: Trials) -> None:
    overrides = [override for override in trials.overrides("one", JudgeServer()) if not override.startswith("judge")]
    run_trial(compose(overrides), overrides=overrides)
    with pytest.raises(OutputError, match="give the output folder of a trial with a judge"):
        rejudge(trials.folder / "one")
