"""Settings that are trained with other seeds before a winner is chosen."""

from __future__ import annotations

import itertools
import logging
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import optuna
import pytest
from tests.support.configs import composed
from tests.support.programs import ProgramRunner
from tests.support.questions import write_questions
from tests.support.stores import runs_of

from lorahydra import LoRATuner
from lorahydra.config.compose import compose
from lorahydra.errors import ConfigError, JudgeCoverageError, NotRecordedError, TrainingError
from lorahydra.modeling.packaged import fetch
from lorahydra.names import BERTSCORE, Kind, State
from lorahydra.sweep import winner
from lorahydra.sweep.catalog import find_study
from lorahydra.sweep.choice import Choice
from lorahydra.sweep.deciding import ScoreTable
from lorahydra.sweep.repeats import REPEATS, Repeats, _RepeatPlace
from lorahydra.sweep.study_result import StudyResult
from lorahydra.sweep.study_store import known_attributes
from lorahydra.sweep.trial_record import TrialRecord
from lorahydra.sweep.winner import worth_repeating
from lorahydra.trial.place import TrialResult
from lorahydra.trial.rejudge import rejudge_hint
from lorahydra.trial.saved import SavedTrial

KILLED = """
import os, signal, sys
from lorahydra import LoRATuner
from lorahydra.sweep import repeats
measured = []

def kill(place, loss):
    measured.append(place.number)
    if len(set(measured)) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

repeats._RepeatPlace.measured = kill
LoRATuner(overrides=sys.argv[1:]).run()
"""


def tuner(model: str | Path, rows: str | Path, *overrides: str) -> LoRATuner:
    settings = [
        *("model.device=cpu", "evaluation=minilm", "evaluation.max_new_tokens=4", "evaluation.baseline=false"),
        *("training.max_steps=2", "tracking.system_metrics=false", "search.seeds=1"),
        *("data.test_fraction=0", "data.validation_fraction=0.3"),
        *("training.learning_rate=tag(log, interval(1e-5, 1e-4))", *overrides),
    ]
    return LoRATuner(model=Path(model), data=Path(rows), n_trials=3, study="one", overrides=settings)


def repeats() -> dict[tuple[str, str], dict[str, str]]:
    kept = known_attributes("one", "sqlite:///studies.db").get(REPEATS, {})
    return {(number, seed): facts for number, each in kept.items() for seed, facts in each.items()}


@pytest.fixture
def rows(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    fetch("all-minilm-l6-v2")
    monkeypatch.chdir(place)
    return write_questions(place / "rows.jsonl")


def check(result: StudyResult, folder: Path) -> None:
    """The study has three trials, and a choice among settings."""
    assert len(result.trials) == 3
    assert result.choice is not None
    assert result.choice.seeds == 1
    assert {state["state"] for state in repeats().values()} == {"complete"}
    assert {number for number, _ in repeats()} == {str(number) for number in result.choice.p_best}
    assert {seed for _, seed in repeats()} == {"43"}
    runs = [run for run in runs_of(folder, "repeat") if run.info.status == "FINISHED"]
    assert sorted(run.data.tags["lorahydra.repeats"] for run in runs) == sorted(number for number, _ in repeats())
    assert {run.data.params["training.seed"] for run in runs} == {"43"}
    assert {run.data.tags["mlflow.parentRunId"] for run in runs} == {result.run_id}
    original = result.folder / str(result.best.number) / "adapter" / "adapter_model.safetensors"
    assert (result.adapter / "adapter_model.safetensors").read_bytes() == original.read_bytes()


@pytest.mark.slow
def test_killed_in_a_repeat(tiny_model: Path, rows: Path, place: Path, programs: ProgramRunner) -> None:
    script = place / "script.py"
    script.write_text(KILLED)
    started = programs.start([str(script), *tuner(tiny_model, rows).overrides], place)
    assert started.wait() == -signal.SIGKILL, started.errors
    [done] = [key for key, facts in repeats().items() if facts["state"] == "complete"]
    [killed] = [facts["run_id"] for facts in repeats().values() if facts["state"] == "running"]
    before = repeats()[done]["run_id"]

    result = tuner(tiny_model, rows).run()
    check(result, place)
    assert repeats()[done]["run_id"] == before, "it is not trained again"
    states = {run.info.run_id: run.data.tags["lorahydra.state"] for run in runs_of(place, "repeat")}
    assert states.pop(killed) == "interrupted"
    assert set(states.values()) == {"complete"}

    again = tuner(tiny_model, rows).run()
    assert again.choice == result.choice
    assert len(runs_of(place, "repeat")) == len(states) + 1
    assert find_study("one").finished == 3


@pytest.mark.slow
def test_packed_repeats_of_which_one_fails(
    tiny_model: Path, rows: Path, place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    failed: list[int] = []
    finished = _RepeatPlace.finished

    def fail(place: _RepeatPlace, result: TrialResult) -> None:
        if failed:
            finished(place, result)
            return
        failed.append(place.number)
        raise TrainingError("diverged", reason="diverged")

    monkeypatch.setattr(_RepeatPlace, "finished", fail)
    result = tuner(tiny_model, rows, "training.pack=3").run()
    assert f"Trial {failed[0]} with seed 43 failed: diverged" in caplog.text
    assert f"Trials {failed[0]} are left out: their settings have no score with each seed" in caplog.text
    assert len([line for line in caplog.messages if "are trained together" in line]) == 2
    assert result.choice is not None
    assert failed[0] not in result.choice.p_best
    states = {number: facts["state"] for (number, _), facts in repeats().items()}
    assert states.pop(str(failed[0])) == "failed"
    assert set(states.values()) == {"complete"}


def test_a_repeat_is_trained_again_if_mlflow_has_lost_the_run_of_its_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # The model is searched, so that the experiment of the study as a whole has none that could be loaded.
    config = composed("model.name_or_path=/no/such/model", "model.device=cpu", "search.seeds=1", "judge=openai")
    not_read: Any = None
    study, trained = optuna.create_study(study_name="one"), []

    def kept(folder: Path, **_: object) -> SavedTrial:
        (folder / "adapter").mkdir(parents=True)
        (folder / "adapter" / "adapter_model.safetensors").touch()
        return SavedTrial(folder, "run 1", config, not_read)

    def is_lost(*_: object, **__: object) -> None:
        raise NotRecordedError("there is no run 1")

    def train(config: object, *, place: _RepeatPlace, overrides: object) -> None:
        trained.append(place.number)
        place.note(state=State.COMPLETE, run_id="run 2")

    monkeypatch.setattr("lorahydra.sweep.repeats.load_trial", kept)
    monkeypatch.setattr("lorahydra.sweep.repeats.judge_saved", is_lost)
    monkeypatch.setattr("lorahydra.sweep.repeats.run_trial", train)
    study.set_user_attr(REPEATS, {"7": {"43": {"state": "interrupted", "run_id": "run 1"}}})
    repeats = Repeats(
        study, "", tmp_path, config, lambda _, folder: replace(config, output_dir=str(folder)), lambda _: 8
    )
    record = TrialRecord(7, State.COMPLETE, {"model.name_or_path": "tiny"})
    assert repeats.train([record], None) == {7: ["run 2"]}
    assert trained == [7]
    assert "Trial 7 is trained again with seed 43: there is no run 1" in caplog.text


@pytest.mark.parametrize(("kind", "has_command"), [(Kind.REPEAT, False), (Kind.TRIAL, True)])
def test_a_repeat_cannot_be_judged_again_by_itself(kind: Kind, has_command: bool, tmp_path: Path) -> None:
    place: Any = SimpleNamespace(kind=kind)
    said = "The adapter and the predictions are kept"
    with pytest.raises(JudgeCoverageError, match=said) as caught, rejudge_hint(tmp_path, place):
        raise JudgeCoverageError("too few verdicts")
    assert ("lorahydra judges rejudge" in str(caught.value)) is has_command


def test_keys() -> None:
    assert compose([]).search.seeds == 0
    with pytest.raises(ConfigError, match=r"search\.seeds=-1 is not allowed"):
        compose(["search.seeds=-1"])
    for objective in ("loss", "[combined,time]"):
        with pytest.raises(ConfigError, match=r"search\.seeds=2 needs one objective of combined"):
            compose(["search.seeds=2", f"objective={objective}"])
    with pytest.raises(ConfigError, match=r"training\.seed=-1 is not allowed"):
        compose(["training.seed=-1"])


def test_trials_that_left_the_race_are_not_repeated() -> None:
    def table(judged: int) -> ScoreTable:
        return ScoreTable([], {}, [50.0] * judged + [None] * (40 - judged))

    choice = Choice(1, 0, "", {}, (0, 1, 2, 3), 0.01, 40)
    scores = {0: table(40), 1: table(40), 2: table(5), 3: table(36)}
    assert worth_repeating(choice, scores) == [0, 1, 3]
    assert worth_repeating(choice, dict.fromkeys(range(4), table(0))) == [0, 1, 2, 3]  # without a judge


def test_repeats_that_are_missing_decide_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The money was used up before all were judged."""

    def table(mean: float) -> ScoreTable:
        random = np.random.default_rng(int(mean))
        judge = (mean + random.normal(0, 10, 40)).tolist()
        return ScoreTable([("p", n) for n in range(40)], {BERTSCORE: random.random(40).tolist()}, judge)

    config = compose(["search.seeds=2", "judge=openai", "judge.model=m"])
    repeats = Repeats(optuna.create_study(), "", Path(), config, cast("Any", None), lambda _: 8)
    monkeypatch.setattr(Repeats, "train", lambda *_: {1: ["a", "b"], 2: ["c"], 3: ["d", "e"]})
    monkeypatch.setattr(winner, "read_scores", lambda *_: table(75))
    run: Any = SimpleNamespace(config=config, objectives=["combined"], queue=SimpleNamespace(study=repeats.study))
    records = {number: TrialRecord(number, State.COMPLETE, {}) for number in (1, 2, 3)}
    choice = Choice(1, 1, "", {}, (1, 2, 3), 0.01, 40)

    def chosen() -> Choice:
        tables = {1: table(70), 2: table(71), 3: table(69)}
        return winner._among_settings(run, records, choice, tables, repeats)[1]

    for number, seed in itertools.product((1, 2, 3), (43, 44)):
        repeats.note(number, seed, state=State.COMPLETE if (number, seed) != (2, 44) else State.RUNNING)
    assert chosen() is choice
    repeats.note(2, 44, state=State.FAILED)
    assert set(chosen().p_best) == {1, 3}, "a setting that failed is left out"
