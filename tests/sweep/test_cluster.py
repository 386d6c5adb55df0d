"""Studies on a real Slurm and a real Ray: workers are killed, and run into their time limit."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil
import pytest
from optuna.trial import TrialState
from tests.postgres import new_database
from tests.ray_cluster import ray_cluster
from tests.slurm import slurm as slurm
from tests.support.models import scored_with
from tests.support.programs import TRAIN, ProgramRunner, environment

from lorahydra.names import State
from lorahydra.sweep.catalog import find_study, load_study
from lorahydra.sweep.dead_trials import worker_of
from lorahydra.tracking.store import connect

Fault = Callable[[list[int]], None]
"""What happens to the workers, whose process numbers it gets, in the middle of the study."""


@pytest.fixture
def run_study(
    programs: ProgramRunner, tiny_model: Path, tiny_encoder: Path, postgresql_server: str, tmp_path: Path
) -> Callable[[list[str], Mapping[str, str], Fault], str]:
    """Runs a study of 8 trials on 3 workers to its end, and checks it; returns what its first process has logged."""

    def run(launcher: list[str], variables: Mapping[str, str], fault: Fault) -> str:
        studies, runs = new_database(postgresql_server), new_database(postgresql_server)
        rows = [{"prompt": f"say {number}", "completion": str(number)} for number in range(16)]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        words = [
            *("-m", "study=spread", "hydra.sweeper.n_trials=8", "hydra.sweeper.n_jobs=3", *launcher),
            *(f'hydra.sweeper.storage="{studies}"', f'tracking.uri="{runs}"', "tracking.system_metrics=false"),
            *("model=local", f"model.name_or_path={tiny_model}", "model.device=cpu", "training.max_steps=60"),
            *(*scored_with(tiny_encoder), "evaluation.max_new_tokens=4", "data=local", "data.train_file=rows.jsonl"),
            *("training.learning_rate=tag(log, interval(1e-4, 1e-1))", "hydra/sweeper/pruner=none"),
        ]
        program = programs.start([TRAIN, *words], tmp_path, environment(**variables))
        program.wait_for(lambda: "places 3 workers" in program.output)
        study = load_study("spread", studies)

        def stopped() -> list[int]:
            """The workers that run a trial; they go on when all are there, or a slow machine would be too late."""
            workers = map(worker_of, study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))
            pids = [worker["pid"] for worker in workers if worker is not None]
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            return pids

        program.wait_for(lambda: len(stopped()) == 3)
        workers = stopped()
        fault(workers)
        for pid in filter(psutil.pid_exists, workers):
            os.kill(pid, signal.SIGCONT)
        done = program.finish()
        assert done.returncode == 0, done.stdout + done.stderr

        entry = find_study("spread", studies)
        assert (entry.state, entry.finished) == (State.COMPLETE, 8)
        counted = [trial for trial in entry.trials if trial.counts]
        assert len({str(trial.params) for trial in counted}) == 8
        assert len(entry.trials) > 8, "a trial was given back or was killed"
        client = connect(runs, create=False)
        [parent, *others] = client.search_runs(["1"], "tags.`lorahydra.kind` = 'study'")
        assert not others
        assert parent.info.status == "FINISHED"
        assert len(client.search_model_versions("name = 'lorahydra-spread'")) == 1
        return done.stdout

    return run


@pytest.mark.slow
def test_slurm(run_study: Callable[..., str], slurm: dict[str, str]) -> None:
    pytest.importorskip("submitit", reason="the extra slurm is not installed")

    def fault(_: list[int]) -> None:
        def ask(*command: str) -> str:
            return subprocess.run(command, env=os.environ | slurm, capture_output=True, text=True, check=True).stdout

        killed, at_its_limit, _ = ask("squeue", "--noheader", "--array", "--format=%i").split()
        ask("scancel", "--signal=KILL", killed)
        ask("scancel", "--signal=USR2", at_its_limit)  # as Slurm sends it before the time limit
        assert at_its_limit in ask("squeue", "--noheader", "--array", "--format=%i").split()

    launcher = ["hydra/launcher=submitit_slurm", "hydra.launcher.max_num_timeout=3", "hydra.launcher.timeout_min=9"]
    run_study(launcher, slurm, fault)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the extra ray is not installed")
def test_ray(run_study: Callable[..., str]) -> None:
    def fault(workers: list[int]) -> None:
        psutil.Process(workers[0]).parent().kill()  # type: ignore[union-attr]
        os.kill(workers[1], signal.SIGTERM)

    with ray_cluster(2, 1) as address:
        run_study(["hydra/launcher=ray", f"hydra.launcher.ray.init.address={address}"], {}, fault)
