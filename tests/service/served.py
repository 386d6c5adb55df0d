"""A real `lorahydra serve` process on loopback that can be killed and started again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil
from tests.support.ports import free_port
from tests.support.programs import ProgramRunner, RunningProgram, environment
from tests.support.waiting import SECONDS, wait_for

OVERRIDES = (
    *("evaluation=minilm", "evaluation.max_new_tokens=4", "training.max_steps=2"),
    *("tracking.system_metrics=false", "model.device=cpu", "hydra/sweeper/pruner=none"),
)
"""Of all studies: short ones."""
FORKED = str(Path(__file__).with_name("forked_jobs.py"))
MODEL = {"use_llm_judge": False, "base_model_name": "tiny", "n_trials": 5}
BODY = {"project_id": 123, "fine_tuning_params": MODEL}


class Served:
    """The server.

    Args:
        programs: What starts it.
        place: Its folder is `service` in it.
        models: Its models folder.
        mlflow_database: Copied into its folder.
        options: More of `lorahydra serve`.
        variables: More variables.
    """

    def __init__(
        self,
        programs: ProgramRunner,
        place: Path,
        models: Path,
        mlflow_database: Path,
        options: Sequence[str] = (),
        variables: dict[str, str] | None = None,
    ) -> None:
        self._programs = programs
        self.port = free_port()
        self.folder = place / "service"
        self.folder.mkdir()
        shutil.copy(mlflow_database, self.folder / "mlflow.db")
        self.log = place / "server.log"
        # A connection for each request: one that is kept may be closed by the server just when it is used again.
        self.client = httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}/api/v1",
            timeout=SECONDS,
            trust_env=False,
            limits=httpx.Limits(max_keepalive_connections=0),
        )
        kept = {key: value for key, value in environment().items() if not key.startswith("LORAHYDRA_API")}
        self._variables = kept | (variables or {})
        self._options = [
            *("--port", str(self.port), "--folder", str(self.folder), "--no-mlflow", "--models", str(models)),
            *(word for override in OVERRIDES for word in ("--set", override)),
            *options,
        ]
        self._process: RunningProgram | None = None

    def start(self, *, forks_jobs: bool = True) -> None:
        """Start it.

        Args:
            forks_jobs: False starts jobs as users' servers do: each process imports everything itself.
        """
        command = [FORKED, *self._command()[2:]] if forks_jobs else self._command()
        self._process = self._programs.start(command, self.log.parent, self._variables, output=self.log)
        self._process.wait_for(self._answers)

    def run(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Start it once more, with options with which it ends by itself."""
        return self._programs.run(self._command(*options), self.log.parent, self._variables)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """End it as Ctrl-C does; returns the exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        return self._process.wait()

    def close(self) -> None:
        """Leave nothing behind, whatever state it is in."""
        self.client.close()
        if self._process is not None and self._process.poll() is None:
            self.kill()
        for file in self.folder.glob("jobs/*/process.json"):
            for process in session_of(int(json.loads(file.read_text())["pid"])):
                process.kill()

    def post(self, path: str, body: Any = None, **headers: str) -> httpx.Response:
        return self.client.post(path, json=body, headers=headers)

    def job(self, number: int) -> dict[str, Any]:
        job: dict[str, Any] = self.client.get(f"/fine-tunes/{number}").json()
        return job

    def wait_for_state(self, number: int, *states: str) -> dict[str, Any]:
        wait_for(lambda: self.job(number)["state"] in states)
        return self.job(number)

    def wait_for_trial(self, number: int) -> None:
        """Until its first trial is finished."""
        wait_for(lambda: self.job(number)["trials_finished"] >= 1 or self.job(number)["ended"] is not None)
        assert self.job(number)["failure"] is None

    def processes(self, number: int) -> list[psutil.Process]:
        """All living processes of a job."""
        file = self.folder / "jobs" / str(number) / "process.json"
        return session_of(int(json.loads(file.read_text())["pid"])) if file.is_file() else []

    def attempts(self, number: int) -> int:
        file = self.folder / "jobs" / str(number) / "job.json"
        return int(json.loads(file.read_text())["attempt"]) if file.is_file() else 0

    def _command(self, *options: str) -> list[str]:
        return ["-m", "lorahydra", "serve", *self._options, *options]

    def _answers(self) -> bool:
        try:
            return self.client.get("/health").status_code == 200
        except httpx.TransportError:
            return False


def session_of(leader: int) -> list[psutil.Process]:
    members = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                members.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return members


def refused(answer: httpx.Response, status: int, code: str) -> str:
    """Check a refusal; returns its line."""
    assert answer.status_code == status, answer.text
    content = answer.json()
    assert content["code"] == code
    detail: str = content["detail"]
    assert detail
    assert "\n" not in detail
    return detail
