"""`lorahydra ui` starts MLflow's UI on a store and says where the trials are."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from tests.support.ports import free_port
from tests.support.programs import ProgramRunner, environment
from tests.support.waiting import SECONDS, wait_for

from lorahydra.config.schema import TrackingConfig
from lorahydra.names import Kind
from lorahydra.tracking import start_run


@pytest.fixture
def store(place: Path) -> str:
    config = TrackingConfig(uri=f"sqlite:///{place / 'mlflow.db'}", system_metrics=False)
    with start_run(config, output_dir=place / "out", kind=Kind.SINGLE, run_name="demo"):
        pass
    return config.uri


def healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=SECONDS) as response:
            return bool(response.read() == b"OK")
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.service
def test_it_serves_until_it_is_interrupted(store: str, tmp_path: Path) -> None:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "lorahydra", "ui", "--uri", store, "--port", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=tmp_path,
        # The other workers of MLflow's server, and its processes for jobs, would cost as much as ten tests.
        env=environment(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false", MLFLOW_WORKERS="1"),
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        pattern = rf"Trials, best first: http://127\.0\.0\.1:{port}/#/experiments/\d+/runs\?viewStateShareKey=\S+\n"
        assert re.fullmatch(pattern, line)
        wait_for(lambda: healthy(port))
        os.killpg(process.pid, signal.SIGINT)
        process.wait(SECONDS)
        assert not healthy(port)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.slow
def test_what_cannot_be_shown_is_one_line(store: str, tmp_path: Path, programs: ProgramRunner) -> None:
    def refused(*words: str) -> str:
        done = programs.run(["-m", "lorahydra", "ui", *words], tmp_path)
        assert done.returncode == 2, done
        assert done.stderr.count("\n") == 1
        return done.stderr

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert "is taken" in refused("--uri", store, "--port", port)
    assert "no experiment other: it has Default, lorahydra" in refused("--uri", store, "--experiment", "other")
    assert "0 is not in the range" in refused("--port", "0")
