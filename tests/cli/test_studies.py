"""Studies as processes: killed, interrupted, shared, resumed; and `lorahydra studies`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lorahydra.modeling.packaged import fetch
from lorahydra.names import State
from lorahydra.sweep.catalog import find_study
from lorahydra.sweep.records import TrialRecord

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def place(tmp_path: Path, tiny_model: Path) -> Path:
    """A folder to run in, with rows."""
    fetch("all-minilm-l6-v2")
    lines = [json.dumps({"question": f"What is {n}+{n}?", "answer": f"It is {2 * n}."}) for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), "utf-8")
    return tmp_path


def arguments(model: Path, n_trials: int) -> list[str]:
    return [
        *("-m", "study=small", f"hydra.sweeper.n_trials={n_trials}", "tracking.system_metrics=false"),
        *("model=local", f"model.name_or_path={model}", "model.device=cpu", "training.max_steps=2"),
        *("evaluation=minilm", "evaluation.max_new_tokens=6", "data=local", "data.train_file=rows.jsonl"),
        *("training.learning_rate=tag(log, interval(1e-4, 1e-1))", "hydra/sweeper/pruner=none"),
    ]


def environment() -> dict[str, str]:
    # Several torch processes on two cores would wait for each other.
    return {key: value for key, value in os.environ.items() if not key.startswith("LORA_")} | {"OMP_NUM_THREADS": "1"}


def start(place: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(REPOSITORY / "train.py"), *words],
        cwd=place,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def lorahydra(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lorahydra", *words]
    return subprocess.run(
        command, cwd=place, env=environment(), capture_output=True, text=True, timeout=300, check=False
    )


def finish(process: subprocess.Popen[str], drain: threading.Thread) -> str:
    """Wait for the end; returns stderr."""
    assert process.stderr is not None
    assert process.stdout is not None
    with process.stderr, process.stdout:
        said = process.stderr.read()
        process.wait()
        drain.join()
    return said


def wait_for(process: subprocess.Popen[str], text: str) -> threading.Thread:
    """Read the log up to a line with `text`, and drain the rest in the background."""
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if text in line:
            break
    else:
        pytest.fail(f"{text!r} never came: {''.join(seen)} {process.stderr.read() if process.stderr else ''}")
    drain = threading.Thread(target=process.stdout.read, daemon=True)
    drain.start()
    return drain


def trials(place: Path) -> list[TrialRecord]:
    return find_study("small", f"sqlite:///{place / 'studies.db'}").trials


def runs(place: Path) -> Sequence[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{place / 'mlflow.db'}")
    return list(client.search_runs([client.get_experiment_by_name("lorahydra").experiment_id]))


def check_whole(place: Path, n_trials: int) -> list[TrialRecord]:
    """Exactly so many trials, all closed, under one parent; returns those that count."""
    found = trials(place)
    counted = [trial for trial in found if trial.counts]
    assert len(counted) == n_trials
    assert {trial.state for trial in found} <= {State.COMPLETE, State.INTERRUPTED}
    recorded = runs(place)
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


def test_a_killed_study_goes_on_as_if_nothing_had_been(place: Path, tiny_model: Path) -> None:
    whole = place / "whole"
    whole.mkdir()
    (whole / "rows.jsonl").write_bytes((place / "rows.jsonl").read_bytes())
    process = start(whole, *arguments(tiny_model, 3))
    _, log = process.communicate(timeout=300)
    assert process.returncode == 0, log
    uninterrupted = check_whole(whole, 3)

    process = start(place, *arguments(tiny_model, 3))
    drain = wait_for(process, "Trial 1 begins")
    process.send_signal(signal.SIGKILL)
    finish(process, drain)
    assert [trial.state for trial in trials(place)] == [State.COMPLETE, State.RUNNING]
    listed = lorahydra(place, "studies", "list").stdout
    assert "interrupted  1 of 3" in listed
    done = lorahydra(place, "studies", "resume", "small")
    assert done.returncode == 0, done.stderr
    counted = check_whole(place, 3)
    assert [trial.number for trial in counted] == [0, 2, 3]
    assert [(trial.params, trial.values) for trial in counted] == [
        (trial.params, trial.values) for trial in uninterrupted
    ]
    shown = lorahydra(place, "studies", "show", "small").stdout
    assert "Study small: complete, 3 of 3 trials" in shown
    assert "Trials, best first" in shown


def test_ctrl_c_keeps_the_study_and_says_how_it_goes_on(place: Path, tiny_model: Path) -> None:
    process = start(place, *arguments(tiny_model, 2))
    drain = wait_for(process, "Trial 1 begins")
    process.send_signal(signal.SIGINT)
    message = finish(process, drain)
    assert process.returncode == 130
    assert "interrupted; the study is kept, go on with: lorahydra studies resume small" in message
    assert [trial.state for trial in trials(place)] in (
        [State.COMPLETE, State.INTERRUPTED],
        [State.COMPLETE, State.COMPLETE],
    )
    assert {run.info.status for run in runs(place)} <= {"FINISHED", "KILLED"}
    done = lorahydra(place, "studies", "resume", "small", "hydra.sweeper.n_trials=3")
    assert done.returncode == 0, done.stderr
    check_whole(place, 3)


def test_four_processes_share_a_study(place: Path, tiny_model: Path) -> None:
    processes = [start(place, *arguments(tiny_model, 12)) for _ in range(4)]
    ends = []
    for process in processes:
        _, log = process.communicate(timeout=500)
        ends.append((process.returncode, log))
    assert [code for code, _ in ends] == [0] * 4, ends
    counted = check_whole(place, 12)
    assert sorted(trial.number for trial in counted) == list(range(12))
    assert len({str(trial.params) for trial in counted}) == 12


def test_workers_of_one_command(place: Path, tiny_model: Path) -> None:
    process = start(place, *arguments(tiny_model, 4), "hydra/launcher=joblib", "hydra.sweeper.n_jobs=2")
    output, log = process.communicate(timeout=300)
    assert process.returncode == 0, log
    check_whole(place, 4)
    assert "Trials, best first" in output
    assert "[worker 1]" in log
    assert "[worker 2]" in log


@pytest.mark.parametrize(
    "words",
    [
        ["hydra/sweeper=basic", "lora.r=2,4"],
        ["hydra/sweeper=optuna", "hydra.sweeper.direction=maximize", "lora.r=choice(2,4)", "hydra.sweeper.n_trials=2"],
    ],
)
def test_hydras_and_optunas_own_sweepers_still_work(place: Path, tiny_model: Path, words: list[str]) -> None:
    shared = [
        word for word in arguments(tiny_model, 2) if word.startswith(("-m", "model", "evaluation", "data", "tracking"))
    ]
    process = start(place, *shared, "training.max_steps=2", *words)
    _, log = process.communicate(timeout=300)
    assert process.returncode == 0, log
    assert [run.data.tags["lorahydra.kind"] for run in runs(place)] == ["single", "single"]
    assert not (place / "studies.db").exists()


def test_unknown_studies_and_stores_are_one_line(tmp_path: Path) -> None:
    for words, message in (
        (["list"], "there is no study store studies.db"),
        (["show", "x", "--storage", "nonsense"], "hydra.sweeper.storage=nonsense is not allowed"),
        (["resume", "x"], "there is no study store studies.db"),
    ):
        done = lorahydra(tmp_path, "studies", *words)
        assert done.returncode == 2
        [line] = done.stderr.strip().splitlines()
        assert message in line
    assert list(tmp_path.iterdir()) == []
