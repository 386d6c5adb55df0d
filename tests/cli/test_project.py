"""`MLproject`: parameters are values and nothing else, and the run that MLflow opens is the one recorded to."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.models import make_tiny_encoder
from tests.support.programs import REPOSITORY, ProgramRunner, environment
from tests.support.questions import write_questions
from tests.support.stores import client_of, runs_of

from lorahydra.cli.project import CHECKED, ENTRIES, TEXTS, _command, overrides_of
from lorahydra.config.compose import compose
from lorahydra.errors import ConfigError
from lorahydra.names import Tag

RECORDED = ["tracking.uri='http://host:5000'", f"tracking.run_id={'0' * 32}"]
MlflowRun = Callable[..., subprocess.CompletedProcess[str]]
ProjectRun = Callable[..., subprocess.CompletedProcess[str]]
PARAMETERS = {
    "model": "tiny",
    "data_file": "мои данные, a=${b}.jsonl",
    "overrides": (
        "evaluation.max_new_tokens=6 evaluation.bertscore_model=./encoder evaluation.bertscore_num_layers=1 "
        "training.max_steps=2 tracking.system_metrics=false model.device=cpu"
    ),
}
"""Of every run: a small trial on data in a file of an awkward name."""
HOSTILE = [
    "x hydra.run.dir=/etc",
    "a,b",
    "a=b",
    'it\'s "quoted"',
    "${oc.env:HOME}",
    "\\${x}",
    "back\\slash\\",
    "мои данные (1).jsonl",
    "[1,2]",
    "{a: b}",
    "choice(1,2)",
    "null",
    "a\\'b",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_named_parameter_is_nothing_but_its_value(text: str) -> None:
    config = compose(overrides_of({"data_file": text, "model": text}))
    assert config.data.train_file == text
    assert config.model.name_or_path == text


def test_a_model_is_a_shipped_choice_or_a_name() -> None:
    assert overrides_of({"model": "smollm2_135m"}) == ["model=smollm2_135m"]
    assert compose(overrides_of({"model": "Qwen/Qwen3-1.7B"})).model.name_or_path == "Qwen/Qwen3-1.7B"


def test_empty_parameters_leave_the_defaults() -> None:
    assert overrides_of({"model": "", "n_trials": " ", "overrides": ""}) == []


def test_a_whole_number_is_one_for_hydra_as_well() -> None:
    assert overrides_of({"n_trials": " 007 ", "seed": "0"}) == ["hydra.sweeper.n_trials=7", "seed=0"]


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("main", ["train.py", "-m", *RECORDED, "lora.r=4"]),
        ("trial", ["train.py", *RECORDED, "lora.r=4"]),
        ("demo", ["train.py", "-m", "experiment=demo", *RECORDED, "lora.r=4"]),
        ("evaluate", ["lorahydra", "evaluate", "my adapter", *RECORDED, "lora.r=4"]),
        ("test", ["pytest", "-k", "a b"]),
    ],
)
def test_what_an_entry_point_starts(entry: str, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    given = {"lora.r": "4"} | ({"adapter": "my adapter"} if entry == "evaluate" else {})
    assert _command(entry, {"options": "-k 'a b'"} if entry == "test" else given) == expected


@pytest.mark.parametrize("adapter", ["", "--help"])
def test_an_evaluation_needs_an_adapter(adapter: str) -> None:
    with pytest.raises(ConfigError, match="-P adapter=… is needed"):
        _command("evaluate", {"adapter": adapter})


def test_other_parameters_are_overrides_by_their_key_and_later_ones_win() -> None:
    given = {"lora.r": "choice(8,16)", "evaluation": "minilm", "overrides": "lora.r=4 'data.system_prompt=a b'"}
    assert overrides_of(given) == ["lora.r=choice(8,16)", "evaluation=minilm", "lora.r=4", "data.system_prompt=a b"]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"judge": "none,gemini"}, "-P judge=none,gemini is not a name"),
        ({"judge": "none lora.r=64"}, "is not a name"),
        ({"n_trials": "3.5"}, "-P n_trials=3.5 is not a whole number"),
        ({"seed": "1 lora.r=2"}, "is not a whole number"),
        ({"n_trial": "3"}, "-P n_trial=… is neither a parameter"),
        ({"--config-dir": "/tmp"}, "is neither a parameter"),
        ({"overrides": "--multirun"}, "'--multirun', which is not an override"),
        ({"overrides": "lora.r"}, "'lora.r', which is not an override"),
        ({"overrides": "a='b"}, "a quote is not closed"),
    ],
)
def test_a_parameter_that_cannot_be_is_refused(parameters: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        overrides_of(parameters)


def test_the_file_and_the_program_know_the_same_entry_points() -> None:
    project = yaml.safe_load((REPOSITORY / "MLproject").read_text("utf-8"))
    assert set(project["entry_points"]) == set(ENTRIES)
    for entry in project["entry_points"].values():
        for name in entry["parameters"]:
            assert name in {*CHECKED, *TEXTS, "overrides", "adapter", "options"}
            assert f"--{name} {{{name}}}" in entry["command"]


# --- mlflow run, for real -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, mlflow_database: Path) -> Path:
    """A folder to call `mlflow run` in, with rows in a file of an awkward name, and a project that comes from Git."""
    folder = tmp_path_factory.mktemp("calling") / "мои данные"
    folder.mkdir()
    shutil.copy(mlflow_database, folder / "mlflow.db")
    write_questions(folder / "мои данные, a=${b}.jsonl")
    project = folder / "project"
    project.mkdir()
    for name in ("src", "conf", "scripts"):
        shutil.copytree(REPOSITORY / name, project / name)
    for name in ("train.py", "MLproject", "python_env.yaml", "constraints.txt", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, project / name)
    git = ("git", "-C", str(project), "-c", "user.name=a", "-c", "user.email=a@example.com")
    for words in (("init", "-q"), ("add", "-A"), ("commit", "-qm", "a")):
        subprocess.run([*git, *words], check=True, capture_output=True)
    (folder / "tiny").symlink_to(tiny_model)
    make_tiny_encoder(folder / "encoder")
    return folder


@pytest.fixture
def mlflow_run(place: Path, programs: ProgramRunner) -> MlflowRun:
    """Runs `mlflow run` there; the project's own commands are processes that import everything themselves."""
    other = place / "bin"
    other.mkdir(exist_ok=True)
    if not (other / "python").exists():
        (other / "python").symlink_to(Path(sys.base_prefix) / "bin" / "python3")
    # No environment is activated: `python` on PATH need not be the one that has lorahydra.
    variables = environment(MLFLOW_DISABLE_TELEMETRY="true", PATH=f"{other}:/usr/bin:/bin")

    def run(*words: str, project: str = str(REPOSITORY)) -> subprocess.CompletedProcess[str]:
        given = [word for name, value in PARAMETERS.items() for word in ("-P", f"{name}={value}")]
        command = ["-m", "mlflow", "run", project, "--env-manager", "local", *given, *words]
        return programs.run(command, place, variables)

    return run


@pytest.fixture
def project(place: Path, programs: ProgramRunner, monkeypatch: pytest.MonkeyPatch) -> ProjectRun:
    """Does what `mlflow run` does, in a process that has imported everything: opens a run and calls the entry point."""
    monkeypatch.chdir(place)

    def run(entry: str, **parameters: str) -> subprocess.CompletedProcess[str]:
        opened = client_of(place).create_run("0").info.run_id
        variables = environment(MLFLOW_RUN_ID=opened, MLFLOW_TRACKING_URI=f"sqlite:///{place / 'mlflow.db'}")
        given = [word for name, value in (PARAMETERS | parameters).items() for word in (f"--{name}", value)]
        command = ["-m", "lorahydra.cli.project", str(os.getpid()), entry, *given]
        return programs.run(command, REPOSITORY, variables)

    return run


def values(run: Any) -> dict[str, float]:
    """Metrics that say nothing about time."""
    return {
        name: value
        for name, value in run.data.metrics.items()
        if not name.startswith(("time/", "system/")) and name != "train/tokens_per_second"
    }


@pytest.mark.slow
def test_mlflow_run_is_the_parent_and_gives_the_same_twice(
    place: Path, project: ProjectRun, mlflow_run: MlflowRun, programs: ProgramRunner
) -> None:
    first = project("main", judge="none", n_trials="1", **{"lora.r": "4"})
    assert first.returncode == 0, first.stderr
    # The second time from Git, at a commit: another folder, and the caller's files and outputs all the same.
    git = ["git", "-C", str(place / "project"), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    options = f"-P n_trials=1 -P lora.r=4 -v {commit} --experiment-name second"
    second = mlflow_run(*options.split(), project=f"file://{place / 'project'}")
    assert second.returncode == 0, second.stderr

    runs = runs_of(place)
    assert len(runs) == 4, "two parents with a trial each, and no other run"
    parents = [run for run in runs if run.data.tags.get(Tag.KIND) == "study"]
    assert len(parents) == 2
    trials = []
    for parent in parents:
        assert parent.info.status == "FINISHED"
        assert parent.data.params["n_trials"] == "1"
        trials += [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
        assert trials[-1].info.experiment_id == parent.info.experiment_id
    assert parents[1].data.tags["mlflow.source.type"] == "PROJECT", "it is the run that MLflow opened"
    assert parents[1].data.tags["mlflow.source.git.commit"] == commit
    assert parents[0].info.experiment_id != parents[1].info.experiment_id
    first_trial, second_trial = trials
    assert second_trial.data.params["lora.r"] == "4"
    assert first_trial.info.run_name == second_trial.info.run_name
    assert values(first_trial) == values(second_trial)
    assert values(parents[0]) == values(parents[1])
    assert (place / "studies.db").is_file()
    assert not (place / "project" / "outputs").exists()
    best = parents[0].data.tags[Tag.BEST_RUN]

    again = programs.run(["-m", "lorahydra", "reproduce", best], place)
    assert again.returncode == 0, again.stderr
    assert "metrics are equal to the last digit" in again.stdout
    assert "Different from the recorded run" not in again.stdout


@pytest.mark.slow
def test_trial_and_evaluate(place: Path, project: ProjectRun) -> None:
    trial = project("trial", **{"tracking.experiment_name": "ignored", "lora.r": "4"})
    assert trial.returncode == 0, trial.stderr
    run = runs_of(place)[-1]
    assert run.data.tags[Tag.KIND] == "single"
    assert run.data.params["lora.r"] == "4"
    adapters = sorted((place / "outputs").glob("*/*/adapter"))
    evaluated = project("evaluate", adapter=str(adapters[-1]))
    assert evaluated.returncode == 0, evaluated.stderr
    scored = runs_of(place)[-1]
    assert scored.info.run_id != run.info.run_id
    assert {"test/combined", "baseline/combined"} <= set(scored.data.metrics)


@pytest.mark.slow
def test_a_mistake_is_one_line_and_fails_the_run(place: Path, mlflow_run: MlflowRun) -> None:
    done = mlflow_run("-P", "judge=foo")
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("lorahydra:")]
    assert len(lines) == 1
    assert "LLM judge model not found: 'foo'" in lines[0]
    assert "Traceback" not in done.stderr
    assert runs_of(place)[-1].info.status == "FAILED"
