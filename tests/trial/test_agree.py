"""A judge's scores beside people's: from a file, at the wire, and from feedback on the traces of a run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tests.judges.wire import KEY, MODEL, Request, judge_server
from tests.support.configs import composed

from lorahydra.cli.commands import commands
from lorahydra.config.compose import to_yaml
from lorahydra.config.schema import TrackingConfig
from lorahydra.errors import ConfigError, DataError, JudgeBudgetError, JudgeError
from lorahydra.judges import JudgeCase
from lorahydra.judges.prompt import PromptWriter
from lorahydra.names import CONFIG_FILE, Kind
from lorahydra.tracking import start_run
from lorahydra.tracking.operations import trace
from lorahydra.trial.feedback import labels_of_runs

pytestmark = [pytest.mark.slow, pytest.mark.service]

COUNT = 16


@pytest.fixture(autouse=True)
def _judge(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from lorahydra.judges import loading

    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "*")
    yield
    loading.close_session()


def labels(folder: Path, **columns: Any) -> str:
    """A file with a mark in each answer, and people's scores for it."""
    path = folder / "labels.jsonl"
    rows = [
        {"prompt": f"q{n}", "answer": f"mark {n % 6}" + " word" * n, "score": n % 6, "style": n % 3}
        | {name: value(n) for name, value in columns.items()}
        for n in range(COUNT)
    ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return str(path)


def like_people(request: Request, attempt: int) -> str:
    """A judge that sees the mark."""
    mark = int(request.user.partition("mark ")[2][0])
    scores = dict.fromkeys(request.criteria, mark) | {"style": 5 - mark}
    return f"says {json.dumps({'reasoning': 'r', 'scores': scores})}"


def agree(*arguments: str) -> Result:
    return CliRunner().invoke(commands, ["judges", "agree", *arguments])


def test_the_judge_is_asked_once_and_compared(tmp_path: Path) -> None:
    with judge_server(like_people) as server:
        asked = (labels(tmp_path), "judge=openai", f"judge.model={MODEL}", f"judge.base_url={server.openai}")
        report = json.loads(agree(*asked, "--json").stdout)
        assert server.calls == COUNT
        shown = agree(*asked)
        assert server.calls == COUNT, "verdicts are kept"
    assert report["answers"] == COUNT
    assert report["judge"] == "openai (judge-model-001)"
    assert report["overall"]["pairwise"]["value"] == 1
    assert report["criteria"]["style"]["count"] == COUNT
    assert report["criteria"]["style"]["kendall"]["value"] < 0.5
    assert report["weight"] is None
    assert shown.exit_code == 0
    assert f"{COUNT} answers with people's scores, compared with openai (judge-model-001)" in shown.stdout
    assert "the judge prefers the same one in 100% of the cases" in shown.stdout
    assert "The weight of BERTScore is not compared: not all answers have a reference." in shown.stdout


def test_scores_that_are_given_need_no_judge(tmp_path: Path) -> None:
    file = labels(tmp_path, judge_score=lambda n: 20 * (n % 6), bertscore_f1=lambda n: 0.9 + n / 1000)
    report = json.loads(agree(file, "--json").stdout)
    assert report["judge"] == "the judge's scores in the labels"
    assert report["overall"]["spearman"]["value"] == 1
    assert report["judge_and_length"] == report["people_and_length"]
    assert report["weight"]["present"] == 0.6
    shown = agree(file)
    assert "These labels cannot tell which weight is better" in shown.stdout
    assert "keep 0.6." in shown.stdout


def test_a_judge_that_gives_one_score_is_no_judge(tmp_path: Path) -> None:
    shown = agree(labels(tmp_path, judge_score=lambda n: 80))
    assert shown.exit_code == 0
    assert "Spearman       -" in shown.stdout
    assert "these labels do not show that the judge can be trusted" in shown.stdout
    assert "The judge gave all answers the same score" in shown.stdout


def test_people_who_gave_all_judged_answers_the_same_score(tmp_path: Path) -> None:
    file = labels(tmp_path, score=lambda n: 5 if n < 12 else n % 3, judge_score=lambda n: 7 * n if n < 12 else None)
    failed = agree(file)
    assert isinstance(failed.exception, DataError)
    assert "people gave the same score to all 12 answers that have a judge's score" in str(failed.exception)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (
            {"score": lambda n: 1 if n == 3 else 5},
            "People gave all but 1 of the answers the same score, so these figures",
        ),
        ({"judge_score": lambda n: n % 6}, "judge_score must be from 0 to 100, and in these labels it is from 0 to 5"),
        ({"judge_score": lambda n: 10 * n - 1}, "in these labels it is from -1 to 149"),
        ({"bertscore_f1": lambda n: 80 + n}, "bertscore_f1 must be at most 1, and in these labels it is up to 95"),
    ],
)
def test_labels_that_cannot_tell_a_weight(tmp_path: Path, columns: dict[str, Any], said: str) -> None:
    given = {"judge_score": lambda n: 6 * n, "bertscore_f1": lambda n: 0.9} | columns
    shown = agree(labels(tmp_path, **given))
    assert shown.exit_code == 0, shown.output
    assert said in shown.stdout
    assert "Weight of the judge in combined" not in shown.stdout


def test_the_weight_is_compared_with_the_one_in_use(tmp_path: Path) -> None:
    file = labels(tmp_path, judge_score=lambda n: 6 * n, bertscore_f1=lambda n: 0.9)
    report = json.loads(agree(file, "evaluation.weights={bertscore: 0.8, judge: 0.2}", "--json").stdout)
    assert report["weight"]["present"] == 0.2
    assert any("evaluation.weights is set" in remark for remark in report["remarks"])
    weights = "evaluation.weights={bertscore: 0.2, exact_match: 0.6, judge: 0.2}"
    report = json.loads(agree(file, "metrics=exact_match", weights, "--json").stdout)
    assert report["weight"] is None
    assert "The weight of BERTScore is not compared: combined also has exact_match." in report["remarks"]


@pytest.mark.parametrize(
    ("settings", "error"),
    [((), ConfigError), (("judge.max_cost=0.000001",), JudgeBudgetError), (("judge.max_retries=0",), JudgeError)],
)
def test_a_judge_that_is_missing_or_fails(tmp_path: Path, settings: tuple[str, ...], error: type[Exception]) -> None:
    with judge_server(lambda request, attempt: "empty") as server:
        named = ("judge=openai", f"judge.model={MODEL}", f"judge.base_url={server.openai}") if settings else ()
        failed = agree(labels(tmp_path), *named, *settings)
    assert isinstance(failed.exception, error)


def test_nobody_is_asked_before_the_file_is_checked(tmp_path: Path) -> None:
    file = Path(labels(tmp_path))
    file.write_text(file.read_text().replace('"score": 3', '"score": "three"', 1))
    with judge_server() as server:
        failed = agree(str(file), "judge=openai", f"judge.base_url={server.openai}")
        assert server.calls + len(server.self_tests) == 0
    assert isinstance(failed.exception, DataError)
    assert isinstance(agree().exception, ConfigError)
    assert str(agree(str(file), "--encoding", "nope").exception).startswith("--encoding nope is not a character encod")
    assert "name only score" in str(agree("--run", "x", "--columns", "answer=reply").exception)


def test_people_score_the_traces_of_a_run(tmp_path: Path, mlflow_database: Path) -> None:
    import mlflow

    shutil.copy(mlflow_database, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    config = composed("judge=openai")
    writer = PromptWriter(config.judge.rubric)
    tracking = TrackingConfig(uri=uri, system_metrics=False)
    with start_run(tracking, output_dir=tmp_path / "out", kind=Kind.SINGLE, run_name="demo") as run:
        run.text(to_yaml(config), CONFIG_FILE)
        calls = []
        # The first two answers are judged twice, as by a panel.
        for n, mark in [*((n, n % 6) for n in range(COUNT)), (0, 0), (1, 4)]:
            case = JudgeCase(f"q{n}", f"r{n}", f"a{n}\n\nb")
            reply = json.dumps({"reasoning": "r", "scores": dict.fromkeys(writer.criteria, mark)})
            call = trace(
                "judge openai",
                inputs={"system": "s", "user": writer.write(case, 100).user},
                outputs={"reply": reply, "score": 20.0 * mark, "fault": None},
                attributes={},
                previews=("", ""),
                assessments=None,
                ok=True,
                start_ns=10**18 + len(calls) * 10**6,
                end_ns=10**18 + len(calls) * 10**6 + 1,
            )
            calls.append(call)
            run.trace(call)
    mlflow.set_tracking_uri(uri)
    with pytest.raises(DataError, match="nobody has scored an answer there"):
        labels_of_runs([run.run_id], tracking_uri=uri)
    person = mlflow.entities.AssessmentSource("HUMAN", "anna")
    for n, call in enumerate(calls[:-1]):  # one of the second answer's traces is enough
        mlflow.log_feedback(trace_id=f"tr-{call['id']}", name="score", value=n % 5, source=person)
        mlflow.log_feedback(trace_id=f"tr-{call['id']}", name="style", value=n % 2, source=person)
        robot = mlflow.entities.AssessmentSource("LLM_JUDGE", "robot")
        mlflow.log_feedback(trace_id=f"tr-{call['id']}", name="score", value=77, source=robot)
    found = labels_of_runs([run.run_id], tracking_uri=uri)
    assert len(found) == COUNT
    first, second = found[:2]
    assert (first.prompt, first.reference, first.answer) == ("q0", "r0", "a0\n\nb")
    assert first.score == pytest.approx((0 + COUNT % 5) / 2), "the mean of both"
    assert (second.score, second.judge_score) == (1, 50), "the mean of both judges"
    assert second.criteria == {"style": 1}
    assert second.judge_criteria["style"] == 2.5
    shown = agree("--run", run.run_id, "--uri", uri)
    assert shown.exit_code == 0, shown.output
    assert f"{COUNT} answers with people's scores" in shown.stdout
