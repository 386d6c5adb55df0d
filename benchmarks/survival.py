"""Does a study survive? kill -9 at random moments, then resume, and compare with an uninterrupted study.

python benchmarks/survival.py --kills 20

Each round begins a small real study (a tiny random model, real training, generation and BERTScore), kills its process
at a random moment of a random trial or of the end of the study, resumes it with `lorahydra studies resume`, and checks:
exactly n_trials finished, no finished trial lost or repeated, every MLflow run closed, one parent, and the same
parameters and scores as the uninterrupted study.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))
N_TRIALS = 5


def main() -> None:
    """Run the rounds and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pack", type=int, default=1, help="trials that are trained side by side")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        whole, duration = run_whole(folder / "whole", folder, options.pack)
        print(f"uninterrupted: {duration:.1f} s a trial, best {max(score for _, score in whole):.4f}", flush=True)
        drawn = random.Random(options.seed)
        good = 0
        for number in range(options.kills):
            # By trials rather than by the clock, whose time would be that of a machine as busy as it was before.
            trials, moment = drawn.randrange(N_TRIALS + 1), drawn.uniform(0, duration)
            faults, died = round_of(folder / f"kill-{number}", folder, trials, moment, whole, options.pack)
            good += not faults
            print(
                f"kill {number} {moment:4.1f} s after {trials} trials ({died}): {'; '.join(faults) or 'ok'}", flush=True
            )
        print(f"{good} of {options.kills}")
        sys.exit(good != options.kills)


def prepare(folder: Path) -> None:
    """A tiny model and forty rows."""
    from tests.conftest import make_tiny_model

    make_tiny_model(folder / "tiny")
    rows = [json.dumps({"question": f"What is {n}+{n}?", "answer": f"It is {2 * n}."}) for n in range(40)]
    (folder / "rows.jsonl").write_text("\n".join(rows), "utf-8")


def start(place: Path, folder: Path, pack: int) -> subprocess.Popen[bytes]:
    """Begin the study in `place`."""
    place.mkdir(exist_ok=True)
    arguments = [
        *("-m", "study=small", f"hydra.sweeper.n_trials={N_TRIALS}", "tracking.system_metrics=false"),
        *("model=local", f"model.name_or_path={folder / 'tiny'}", "model.device=cpu", "training.max_steps=2"),
        *("evaluation=minilm", "evaluation.max_new_tokens=6", "data=local", f"data.train_file={folder / 'rows.jsonl'}"),
        *("training.learning_rate=tag(log, interval(1e-4, 1e-1))", "lora.r=choice(2, 4, 8)"),
    ]
    if pack > 1:
        # What a pruner sees of a pack's other trials depends on how far they are.
        arguments += [f"training.pack={pack}", "hydra/sweeper/pruner=none"]
    command = [sys.executable, str(REPOSITORY / "train.py"), *arguments]
    with (place / "log.txt").open("ab") as log:
        return subprocess.Popen(command, cwd=place, stdout=log, stderr=log, env=os.environ | {"HF_HUB_OFFLINE": "1"})


def run_whole(place: Path, folder: Path, pack: int) -> tuple[list[tuple[str, float]], float]:
    """The study without interruption: parameters and score of its trials in order, and seconds of a trial."""
    import optuna

    if start(place, folder, pack).wait() != 0:
        sys.exit((place / "log.txt").read_text())
    study = optuna.load_study(study_name="small", storage=f"sqlite:///{place / 'studies.db'}")
    seconds = [trial.duration.total_seconds() for trial in study.trials if trial.duration is not None]
    return trials_of(place)[0], sum(seconds) / len(seconds)


def wait_for_trials(process: subprocess.Popen[bytes], place: Path, count: int) -> None:
    """Wait until the study exists, so that there is something to lose, and has this many finished trials."""
    while process.poll() is None and finished(place) < count:
        time.sleep(0.05)


def finished(place: Path) -> int:
    """The number of finished trials; -1 if there is no trial yet."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{place / 'studies.db'}?mode=ro", uri=True)) as store:
            begun, done = store.execute("SELECT COUNT(*), SUM(state = 'COMPLETE') FROM trials").fetchone()
    except sqlite3.Error:  # its tables are not made yet
        return -1
    return done if begun else -1


def round_of(
    place: Path, folder: Path, trials: int, moment: float, whole: list[tuple[str, float]], pack: int
) -> tuple[list[str], str]:
    """One kill and one resumption; returns the faults after them, and when the process died."""
    process = start(place, folder, pack)
    wait_for_trials(process, place, trials)
    time.sleep(moment)
    process.send_signal(signal.SIGKILL)
    process.wait()
    begun = (place / "studies.db").is_file() and bool(studies_in(place))
    before = trials_of(place)[0] if begun else []
    if begun:
        command = [sys.executable, "-m", "lorahydra", "studies", "resume", "small"]
        with (place / "log.txt").open("ab") as log:
            again = subprocess.run(
                command, cwd=place, stdout=log, stderr=log, env=os.environ | {"HF_HUB_OFFLINE": "1"}, check=False
            )
        code = again.returncode
    else:
        code = start(place, folder, pack).wait()
    faults = [] if code == 0 else [f"exit code {code}, see {(place / 'log.txt').read_text()[-300:]}"]
    return faults + check(place, before, whole), f"{len(before)} trials finished" if begun else "no study yet"


def studies_in(place: Path) -> list[str]:
    """Names of the studies in the store of `place`."""
    import optuna

    try:
        return optuna.get_all_study_names(f"sqlite:///{place / 'studies.db'}")
    except Exception:
        return []


def trials_of(place: Path) -> tuple[list[tuple[str, float]], list[int]]:
    """Parameters and score of the trials that count, and the numbers of those still open."""
    from lorahydra.names import State
    from lorahydra.sweep.catalog import find_study

    records = find_study("small", f"sqlite:///{place / 'studies.db'}").trials
    counted = [(json.dumps(dict(r.params), sort_keys=True), (r.values or (0.0,))[0]) for r in records if r.counts]
    return counted, [r.number for r in records if r.state is State.RUNNING]


def check(place: Path, before: list[tuple[str, float]], whole: list[tuple[str, float]]) -> list[str]:
    """The faults of a study that was killed and resumed."""
    from mlflow import MlflowClient

    counted, still_open = trials_of(place)
    faults = []
    if len(counted) != N_TRIALS:
        faults.append(f"{len(counted)} trials finished")
    if still_open:
        faults.append(f"trials {still_open} still open in Optuna")
    if counted[: len(before)] != before:
        faults.append("a finished trial changed")
    if counted != whole:
        faults.append(f"other trials than uninterrupted: {counted} instead of {whole}")
    client: Any = MlflowClient(f"sqlite:///{place / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("lorahydra")
    runs = client.search_runs([experiment.experiment_id])
    parents = [run for run in runs if run.data.tags["lorahydra.kind"] == "study"]
    if len(parents) != 1:
        faults.append(f"{len(parents)} parent runs")
    for run in runs:
        kind, state = run.data.tags["lorahydra.kind"], run.data.tags["lorahydra.state"]
        if run.info.status == "RUNNING" or state == "running":
            faults.append(f"{kind} run {run.info.run_name} is {run.info.status}, {state}")
        if kind == "trial" and run.data.tags.get("mlflow.parentRunId") not in {p.info.run_id for p in parents}:
            faults.append(f"run {run.info.run_name} has no parent")
    states = [run.data.tags["lorahydra.state"] for run in runs if run.data.tags["lorahydra.kind"] == "trial"]
    if sum(state in ("complete", "pruned") for state in states) != N_TRIALS:
        faults.append(f"states of runs in MLflow: {states}")
    return faults


if __name__ == "__main__":
    main()
