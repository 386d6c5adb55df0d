"""`train.py judge=…` as a process: its lines, its exit codes, and going on after it was stopped in the middle."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.judges.wire import KEY, MODEL, judge_server
from tests.support.models import scored_with
from tests.support.programs import TRAIN, ProgramRunner, environment
from tests.support.questions import write_questions
from tests.support.stores import runs_of

Arguments = Callable[..., list[str]]
pytestmark = [pytest.mark.slow, pytest.mark.service]


@pytest.fixture
def place(place: Path, own_cache: Path) -> Path:
    """A folder with data, and a cache without verdicts."""
    write_questions(place / "rows.jsonl", 60)
    return place


@pytest.fixture
def arguments(tiny_model: Path, tiny_encoder: Path) -> Arguments:
    """The command of a trial with the judge of a server."""
    return lambda server, *more: [
        TRAIN,
        "model=local",
        f"model.name_or_path={tiny_model}",
        "model.device=cpu",
        *scored_with(tiny_encoder),
        "evaluation.max_new_tokens=6",
        "data=local",
        "data.train_file=rows.jsonl",
        "data.validation_fraction=0.3",
        "training.max_steps=2",
        "training.learning_rate=0.5",
        "judge=gemini",
        f"judge.model={MODEL}",
        f"judge.base_url={server.gemini}",
        "tracking.system_metrics=false",
        "hydra.run.dir=out",
        *more,
    ]


def variables(place: Path) -> dict[str, str]:
    kept = {name: value for name, value in environment().items() if not name.startswith("GOOGLE_")}
    return kept | {"GEMINI_API_KEY": KEY, "NO_PROXY": "*", "LORAHYDRA_CACHE": str(place / "cache")}


def the_run(place: Path) -> Any:
    [run] = runs_of(place)
    return run


def test_a_judge_that_is_away_is_exit_code_3(place: Path, arguments: Arguments, programs: ProgramRunner) -> None:
    with judge_server(lambda request, attempt: "503") as server:
        done = programs.run(arguments(server, "judge.max_retries=1"), place, variables(place))
    assert done.returncode == 3
    [line] = done.stderr.strip().splitlines()[-1:]
    assert line.startswith("lorahydra: judge gemini is unavailable: server error: HTTP 503")
    assert "Traceback" not in done.stdout + done.stderr
    assert KEY not in done.stdout + done.stderr
    assert (place / "out" / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_trial_stopped_while_it_is_judged_goes_on(
    place: Path, arguments: Arguments, programs: ProgramRunner, how: signal.Signals
) -> None:
    stopped = False
    with judge_server(lambda request, attempt: "good" if stopped or attempt > 1 else "slow") as server:
        running = programs.start(arguments(server), place, variables(place))
        running.wait_for((place / "out" / "answers.json").is_file)
        running.send_signal(how)
        code, stopped = running.wait(), True
        if how is signal.SIGINT:
            assert code == 130
            last = running.errors.strip().splitlines()[-1]
            assert last.endswith("go on with: lorahydra judges rejudge " + str(place / "out"))
            assert the_run(place).info.status == "KILLED"
        command = ["-m", "lorahydra", "judges", "rejudge", "out", "judge.timeout=20"]
        done = programs.run(command, place, variables(place))
    assert done.returncode == 0, done.stderr
    run = the_run(place)
    assert run.info.status == "FINISHED"
    assert run.data.tags["lorahydra.state"] == "complete"
    assert run.data.metrics["eval/judge_coverage"] == 1
    assert run.data.metrics["eval/combined"] > 0
    assert run.data.metrics["eval/loss"] > 0, "what was logged before the end is there too"
