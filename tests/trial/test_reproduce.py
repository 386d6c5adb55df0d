"""A recorded trial, run again."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest
from tests.support.models import scored_with
from tests.support.questions import write_questions
from tests.support.stores import runs_of

from lorahydra.cli.reproduce import _from_here
from lorahydra.config.compose import compose, literal
from lorahydra.config.schema import ExperimentConfig
from lorahydra.errors import ConfigError, DataError, TrackingError
from lorahydra.names import Kind
from lorahydra.tracking import start_run
from lorahydra.trial.evaluate_adapter import evaluate_adapter
from lorahydra.trial.reproduce import Agreement, compare, read_recorded, reproduce
from lorahydra.trial.run import TrialResult, run_trial


def test_metrics_are_compared_step_by_step() -> None:
    before = {
        "train/loss": ((1, 2.0), (2, 1.0)),
        "eval/loss": ((2, 1.5),),
        "gone": ((0, 1.0),),
        "nan": ((0, math.nan),),
        "twice": ((0, 1.0), (0, 2.0)),
    }
    again = {
        "train/loss": ((1, 2.0), (2, 1.0004)),
        "eval/loss": ((2, 1.6),),
        "new": ((0, 1.0),),
        "nan": ((0, math.nan),),
        "twice": ((0, 2.0),),
    }
    by_name = {entry.name: entry for entry in compare(before, again, tolerance=1e-3)}
    assert {name: entry.agreement for name, entry in by_name.items()} == {
        "train/loss": Agreement.CLOSE,
        "eval/loss": Agreement.DIFFERENT,
        "gone": Agreement.MISSING,
        "new": Agreement.MISSING,
        "nan": Agreement.EQUAL,
        "twice": Agreement.EQUAL,
    }
    assert by_name["train/loss"].difference == pytest.approx(4e-4)
    assert (by_name["eval/loss"].before, by_name["eval/loss"].again) == (1.5, 1.6)


def test_an_earlier_step_that_differs_counts() -> None:
    assert compare({"a": ((1, 2.0), (2, 1.0))}, {"a": ((1, 3.0), (2, 1.0))}, tolerance=0.1)[0].agreement == "different"


def test_time_and_cost_are_not_compared() -> None:
    points = {"time/total_s": ((0, 1.0),), "judge/cost": ((0, 1.0),), "train/tokens_per_second": ((0, 1.0),)}
    assert compare(points, {}, tolerance=0) == []


def test_a_pruned_run_is_compared_as_far_as_it_went() -> None:
    compared = compare(
        {"eval/loss": ((1, 2.0),)}, {"eval/loss": ((1, 2.0), (2, 1.0)), "x": ((0, 1.0),)}, tolerance=0, cut=True
    )
    assert [(entry.name, entry.agreement) for entry in compared] == [("eval/loss", "equal")]


# --- with a store -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_encoder: Path, mlflow_database: Path
) -> tuple[ExperimentConfig, TrialResult]:
    """A trial in a store of its own."""
    folder = tmp_path_factory.mktemp("recorded")
    shutil.copy(mlflow_database, folder)
    write_questions(folder / "rows ${x}.jsonl")
    settings = ("evaluation.max_new_tokens=6", "training.max_steps=2", "model.device=cpu")
    overrides = [*scored_with(tiny_encoder), *settings]
    config = compose(["model=local", f"model.name_or_path={tiny_model}", "data=local", "data.train_file=x", *overrides])
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, train_file=str(folder / "rows ${x}.jsonl")),
        tracking=dataclasses.replace(config.tracking, uri=f"sqlite:///{folder}/mlflow.db", system_metrics=False),
        output_dir=str(folder / "out"),
    )
    return config, run_trial(config, overrides=overrides)


@pytest.mark.slow
def test_it_comes_out_the_same_and_says_whose_copy_it_is(
    recorded: tuple[ExperimentConfig, TrialResult], tmp_path: Path
) -> None:
    config, result = recorded
    read = read_recorded(result.run_id, tracking_uri=config.tracking.uri)
    assert dataclasses.replace(read.config, output_dir=config.output_dir, tracking=config.tracking) == config
    assert read.differences() == []
    # The output folder is gone: MLflow has all that is needed.
    shutil.rmtree(config.output_dir)
    compared = reproduce(read, output_dir=tmp_path / "again")
    assert {entry.name for entry in compared} >= {"train/loss", "eval/loss", "eval/combined", "baseline/combined"}
    assert {entry.agreement for entry in compared} == {Agreement.EQUAL}
    copies = [run for run in runs_of(config.tracking.uri) if run.data.tags.get("lorahydra.reproduces") == result.run_id]
    assert len(copies) == 1


@pytest.mark.slow
def test_the_new_run_may_be_recorded_elsewhere(recorded: tuple[ExperimentConfig, TrialResult], tmp_path: Path) -> None:
    config, result = recorded
    elsewhere = [f"tracking.uri=sqlite:///{tmp_path}/other.db"]
    before = len(runs_of(config.tracking.uri))
    read = read_recorded(result.run_id, tracking_uri=config.tracking.uri, overrides=elsewhere)
    compared = reproduce(read, output_dir=tmp_path / "again")
    assert {entry.agreement for entry in compared} == {Agreement.EQUAL}
    assert len(runs_of(config.tracking.uri)) == before


def test_paths_in_overrides_are_meant_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there, it is.jsonl").touch()
    absolute = _from_here("data.train_file=there, it is.jsonl")
    assert absolute == f"data.train_file={literal(str(tmp_path / 'there, it is.jsonl'))}"
    (tmp_path / "b.csv").touch()
    listed = _from_here("data.train_file=['there, it is.jsonl',b.csv,demo]")
    names = (tmp_path / "there, it is.jsonl", tmp_path / "b.csv", "demo")
    assert listed == f"data.train_file=[{','.join(literal(str(name)) for name in names)}]"
    for other in (
        "data.train_file=demo",
        "data.train_file=[a",
        "lora.r=8",
        "model.name_or_path=Qwen/Qwen3-0.6B",
        "seed",
    ):
        assert _from_here(other) == other


@pytest.mark.slow
def test_another_seed_comes_out_differently(recorded: tuple[ExperimentConfig, TrialResult], tmp_path: Path) -> None:
    config, result = recorded
    read = read_recorded(result.run_id, tracking_uri=config.tracking.uri, overrides=["seed=7"])
    assert read.changed == ("seed",)
    assert read.differences() == ["config: seed is 7 now"]
    compared = reproduce(read, output_dir=tmp_path / "again")
    assert Agreement.DIFFERENT in {entry.agreement for entry in compared}


@pytest.mark.slow
def test_data_that_are_gone_are_one_line(recorded: tuple[ExperimentConfig, TrialResult], tmp_path: Path) -> None:
    config, result = recorded
    overrides = [f"data.train_file={tmp_path}/nowhere.jsonl"]
    read = read_recorded(result.run_id, tracking_uri=config.tracking.uri, overrides=overrides)
    before = len(runs_of(config.tracking.uri))
    with pytest.raises(DataError, match="nowhere"):
        reproduce(read, output_dir=tmp_path / "again")
    # Other rows are found before anything is trained.
    lines = [json.dumps({"question": f"What is {n}*{n}?", "answer": f"It is {n * n}."}) for n in range(40)]
    (tmp_path / "other.jsonl").write_text("\n".join(lines), "utf-8")
    overrides = [f"data.train_file={tmp_path}/other.jsonl"]
    read = read_recorded(result.run_id, tracking_uri=config.tracking.uri, overrides=overrides)
    with pytest.raises(DataError, match="the training data are not what they were: digest .* → "):
        reproduce(read, output_dir=tmp_path / "again")
    assert len(runs_of(config.tracking.uri)) == before
    assert not (tmp_path / "again").exists()


@pytest.mark.slow
def test_what_is_no_trial_is_refused(
    recorded: tuple[ExperimentConfig, TrialResult], tiny_adapter: Path, tmp_path: Path
) -> None:
    config, result = recorded
    uri = config.tracking.uri
    with pytest.raises(TrackingError, match="has no run"):
        read_recorded("0" * 32, tracking_uri=uri)
    with pytest.raises(ConfigError, match="32 hexadecimal digits"):
        read_recorded("../x", tracking_uri=uri)
    with pytest.raises(ConfigError, match="write KEY=VALUE"):
        read_recorded(result.run_id, tracking_uri=uri, overrides=["seed"])
    with pytest.raises(ConfigError, match="unknown key sede"):
        read_recorded(result.run_id, tracking_uri=uri, overrides=["sede=1"])
    with start_run(config.tracking, output_dir=tmp_path / "s", kind=Kind.STUDY, run_name="mine") as study:
        study.tags({"lorahydra.best_run": result.run_id})
    with pytest.raises(ConfigError, match=f"is the study mine.*lorahydra reproduce {result.run_id}"):
        read_recorded(study.run_id, tracking_uri=uri)
    with start_run(config.tracking, output_dir=tmp_path / "e", kind=Kind.SINGLE, run_name="empty") as empty:
        pass
    evaluate_adapter(dataclasses.replace(config, output_dir=str(tmp_path / "scored")), tiny_adapter)
    [scored] = [run for run in runs_of(config.tracking.uri) if "lorahydra.evaluates" in run.data.tags]
    with pytest.raises(
        ConfigError, match=f"only scored an adapter: `lorahydra evaluate {scored.data.tags['lorahydra.evaluates']}`"
    ):
        read_recorded(scored.info.run_id, tracking_uri=uri)
    with pytest.raises(ConfigError, match=r"has no config/config.yaml"):
        read_recorded(empty.run_id, tracking_uri=uri)
