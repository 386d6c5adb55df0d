"""Studies as processes: killed, interrupted, shared, resumed; and `lorahydra studies`."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from tests.support.models import scored_with
from tests.support.programs import TRAIN, ProgramRunner, RunningProgram
from tests.support.questions import write_questions
from tests.support.stores import runs_of

from lorahydra.names import State
from lorahydra.sweep.catalog import find_study
from lorahydra.sweep.study_store import COMMAND
from lorahydra.sweep.trial_record import TrialRecord

pytestmark = pytest.mark.slow

Arguments = Callable[[int], list[str]]
Start = Callable[..., RunningProgram]
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def place(place: Path) -> Path:
    """A folder to run in, with rows."""
    write_questions(place / "rows.jsonl")
    return place


@pytest.fixture
def arguments(tiny_model: Path, tiny_encoder: Path) -> Arguments:
    """Overrides of a study of so many trials."""
    return lambda n_trials: [
        *("-m", "study=small", f"hydra.sweeper.n_trials={n_trials}", "tracking.system_metrics=false"),
        *("model=local", f"model.name_or_path={tiny_model}", "model.device=cpu", "training.max_steps=2"),
        *scored_with(tiny_encoder),
        *("evaluation.max_new_tokens=6", "data=local", "data.train_file=rows.jsonl"),
        *("training.learning_rate=tag(log, interval(1e-4, 1e-1))", "hydra/sweeper/pruner=none"),
    ]


@pytest.fixture
def start(programs: ProgramRunner, place: Path) -> Start:
    """Starts `train.py`."""
    return lambda *words, folder=place, **options: programs.start([TRAIN, *words], folder, **options)


@pytest.fixture
def lorahydra(programs: ProgramRunner, place: Path) -> Command:
    """Runs `lorahydra`."""
    return lambda *words: programs.run(["-m", "lorahydra", *words], place)


def trials(place: Path) -> list[TrialRecord]:
    return find_study("small", f"sqlite:///{place / 'studies.db'}").trials


def check_whole(place: Path, n_trials: int) -> list[TrialRecord]:
    """Exactly so many trials, all closed, under one parent; returns those that count."""
    all_trials = trials(place)
    counted = [trial for trial in all_trials if trial.counts]
    assert len(counted) == n_trials
    assert {trial.state for trial in all_trials} <= {State.COMPLETE, State.INTERRUPTED}
    recorded = runs_of(place)
    parents = [run for run in recorded if run.data.tags["lorahydra.kind"] == "study"]
    assert len(parents) == 1
    children = [run for run in recorded if run.data.tags["lorahydra.kind"] == "trial"]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parents[0].info.run_id}
    assert all(run.info.status in ("FINISHED", "KILLED") for run in recorded)
    complete = [run for run in children if run.data.tags["lorahydra.state"] == "complete"]
    assert {run.info.run_id for run in complete} == {trial.run_id for trial in counted}
    assert parents[0].data.tags["lorahydra.state"] == "complete"
    assert (place / "outputs" / "small" / "best" / "adapter_model.safetensors").is_file()
    return counted


def test_a_killed_study_goes_on_as_if_nothing_had_been(
    place: Path, arguments: Arguments, start: Start, lorahydra: Command
) -> None:
    whole = place / "whole"
    whole.mkdir()
    (whole / "rows.jsonl").write_bytes((place / "rows.jsonl").read_bytes())
    done = start(*arguments(3), folder=whole).finish()
    assert done.returncode == 0, done.stderr
    uninterrupted = check_whole(whole, 3)

    running = start(*arguments(3), pause_at="Trial 1 begins")
    running.wait_until_paused()
    running.kill()
    assert running.wait() == -signal.SIGKILL
    assert [trial.state for trial in trials(place)] == [State.COMPLETE, State.RUNNING]
    listed = lorahydra("studies", "list").stdout
    assert "interrupted  1 of 3" in listed
    done = lorahydra("studies", "resume", "small")
    assert done.returncode == 0, done.stderr
    counted = check_whole(place, 3)
    assert [trial.number for trial in counted] == [0, 2, 3]
    assert [(trial.params, trial.values) for trial in counted] == [
        (trial.params, trial.values) for trial in uninterrupted
    ]
    shown = lorahydra("studies", "show", "small").stdout
    assert "Study small: complete, 3 of 3 trials" in shown
    assert "Trials, best first" in shown

    asked = lorahydra("studies", "delete", "small")  # nobody answers
    assert asked.returncode != 0
    assert "Registered model: lorahydra-small" in asked.stdout
    assert "Runs in" in asked.stdout
    assert find_study("small", f"sqlite:///{place / 'studies.db'}").state is State.COMPLETE
    done = lorahydra("studies", "delete", "small", "--yes")
    assert done.returncode == 0, done.stderr
    assert lorahydra("studies", "show", "small").returncode == 2
    assert runs_of(place) == []
    assert not (place / "outputs" / "small").exists()
    assert (place / "rows.jsonl").exists()


def test_ctrl_c_keeps_the_study_and_says_how_it_goes_on(
    place: Path, arguments: Arguments, start: Start, lorahydra: Command
) -> None:
    running = start(*arguments(2), pause_at="Trial 1 begins")
    running.wait_until_paused()
    running.send_signal(signal.SIGINT)
    assert running.wait() == 130
    assert "interrupted; the study is kept, go on with: lorahydra studies resume small" in running.errors
    assert [trial.state for trial in trials(place)] == [State.COMPLETE, State.INTERRUPTED]
    assert {run.info.status for run in runs_of(place)} <= {"FINISHED", "KILLED"}
    done = lorahydra("studies", "resume", "small", "hydra.sweeper.n_trials=3")
    assert done.returncode == 0, done.stderr
    check_whole(place, 3)


def test_four_processes_share_a_study(place: Path, arguments: Arguments, start: Start) -> None:
    processes = [start(*arguments(8)) for _ in range(4)]
    ends = [process.finish() for process in processes]
    assert [done.returncode for done in ends] == [0] * 4, ends
    counted = check_whole(place, 8)
    assert sorted(trial.number for trial in counted) == list(range(8))
    assert len({str(trial.params) for trial in counted}) == 8


def test_workers_of_one_command(place: Path, arguments: Arguments, start: Start) -> None:
    done = start(*arguments(4), "hydra/launcher=joblib", "hydra.sweeper.n_jobs=2").finish()
    assert done.returncode == 0, done.stderr
    check_whole(place, 4)
    assert "Trials, best first" in done.stdout
    assert "[worker 1]" in done.stderr
    assert "[worker 2]" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["hydra/sweeper=basic", "lora.r=2,4"],
        ["hydra/sweeper=optuna", "hydra.sweeper.direction=maximize", "lora.r=choice(2,4)", "hydra.sweeper.n_trials=2"],
    ],
)
def test_hydras_and_optunas_own_sweepers_still_work(
    place: Path, arguments: Arguments, words: list[str], start: Start
) -> None:
    shared = [word for word in arguments(2) if word.startswith(("-m", "model", "evaluation", "data", "tracking"))]
    done = start(*shared, "training.max_steps=2", *words).finish()
    assert done.returncode == 0, done.stderr
    assert [run.data.tags["lorahydra.kind"] for run in runs_of(place)] == ["single", "single"]
    assert not (place / "studies.db").exists()


def test_unknown_studies_and_stores_are_one_line(tmp_path: Path, programs: ProgramRunner) -> None:
    for words, message in (
        (["list"], "there is no study store studies.db"),
        (["show", "x", "--storage", "nonsense"], "hydra.sweeper.storage=nonsense is not the address of a database"),
        (["resume", "x"], "there is no study store studies.db"),
    ):
        done = programs.run(["-m", "lorahydra", "studies", *words], tmp_path)
        assert done.returncode == 2
        [line] = done.stderr.strip().splitlines()
        assert message in line
    assert list(tmp_path.iterdir()) == []


def test_an_address_that_was_not_kept_has_to_be_given_again(tmp_path: Path, programs: ProgramRunner) -> None:
    storage = f"sqlite:///{tmp_path / 'studies.db'}"
    study = optuna.create_study(study_name="small", storage=storage)
    study.set_user_attr(COMMAND, {"overrides": ["tracking.uri=https://***", "seed=7"], "cwd": str(tmp_path)})
    done = programs.run(["-m", "lorahydra", "studies", "resume", "small"], tmp_path)
    assert done.returncode == 2
    [line] = done.stderr.strip().splitlines()
    assert "give it again (tracking.uri=…)" in line
    assert not (tmp_path / "mlflow.db").exists()
