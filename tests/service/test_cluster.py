"""Fine-tunes whose workers are jobs of a real Slurm, with a server and a process that are killed meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.mlflow_server import Server
from tests.service.served import MODEL, Served, refused
from tests.service.test_survival import numbers, start
from tests.slurm import slurm as slurm
from tests.support.programs import ProgramRunner
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.service]


def test_a_cluster_does_the_work(
    make_server: Callable[..., Served], programs: ProgramRunner, postgresql: str, slurm: dict[str, str], tmp_path: Path
) -> None:
    pytest.importorskip("submitit", reason="the extra slurm is not installed")
    (tmp_path / "mlflow").mkdir()
    mlflow = Server(programs, tmp_path / "mlflow")
    mlflow.start()
    stores = ("--launcher", "submitit_slurm", "--studies", postgresql, "--tracking-uri", mlflow.uri)
    keys = ("hydra.sweeper.n_jobs=2", "training.max_steps=60")
    server = make_server(*stores, *(word for key in keys for word in ("--set", key)), **slurm)

    def queue() -> list[str]:
        command = ["squeue", "--noheader", "--array", "--format=%i"]
        return subprocess.run(
            command, env=os.environ | slurm, capture_output=True, text=True, check=True
        ).stdout.splitlines()

    server.start()
    first = start(server, 123)
    server.wait_for_trial(first)
    assert len(queue()) == 2

    # The server and the process that waits for the workers are killed; the workers go on.
    server.kill()
    os.killpg(server.processes(first)[0].pid, signal.SIGKILL)
    server.start()
    done = server.wait_for_state(first, "complete", "failed")
    assert (done["state"], done["trials_finished"], done["resumptions"]) == ("complete", 5, 1), done["failure"]
    assert len(numbers(server, first)) == 5
    assert done["mlflow"]["study_url"].startswith(f"{mlflow.uri}/#/experiments/")
    assert server.client.get(f"/fine-tunes/{first}/adapter").status_code == 200
    assert server.client.get(f"/fine-tunes/{first}/examples").json()["split"] == "test"
    log = (server.folder / "jobs" / str(first) / "log.txt").read_text()
    assert log.count("SlurmLauncher places") == 1, "nobody takes the place of a worker that lives"
    wait_for(lambda: queue() == [])

    # Another one is cancelled, although its process does not get round to it. One of its workers waits in the queue.
    body = {"project_id": 123, "fine_tuning_params": MODEL | {"n_trials": 100}}
    subprocess.run(
        ["sbatch", "--ntasks=3", "--output=/dev/null", "--wrap=sleep 999"], env=os.environ | slurm, check=True
    )
    second = server.post("/fine-tunes", body).json()["id"]
    server.wait_for_trial(second)
    assert len(queue()) == 3
    for process in server.processes(second):
        process.suspend()
    assert server.post(f"/fine-tunes/{second}/cancel").json()["state"] == "cancelling"
    assert "is running" in refused(server.client.delete(f"/fine-tunes/{second}"), 409, "still_running")
    server.wait_for_state(second, "cancelled")
    assert len(queue()) == 1
    for job in (first, second):
        deletion = server.client.delete(f"/fine-tunes/{job}").json()["id"]
        wait_for(lambda number=deletion: server.client.get(f"/deletions/{number}").json()["ended"] is not None)
    assert not [file for file in mlflow.artifacts.rglob("*") if file.is_file()]
    subprocess.run(["scancel", *queue()], env=os.environ | slurm, check=True)
    assert server.stop() == 0
