"""Does pruning help? A study with pruning against the same study without it, on rows of GSM8K.

python benchmarks/pruning.py --rows path/to/gsm8k/train.jsonl --runs 2
python benchmarks/pruning.py --rows path/to/gsm8k/train.jsonl --pruner halving --pack 8

Both studies search `search=lora` with the same seed, at the same time and with one thread each, so that the machine is
equally busy for both; each pair has another seed. Prints for each its time, its best score with the interval, and when
the study with pruning first had a score within the interval of the other's best. Time is that of the trials, without
loading.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from lorahydra.names import State
from lorahydra.sweep.catalog import find_study
from lorahydra.sweep.ranking import best_so_far
from lorahydra.sweep.trial_record import TrialRecord

REPOSITORY = Path(__file__).resolve().parents[1]


def main() -> None:
    """Run the pairs and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True, help="GSM8K's train.jsonl")
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--pruner", default="median", help="name in hydra/sweeper/pruner")
    parser.add_argument("--pack", type=int, default=1, help="trials that are trained side by side, in both studies")
    options = parser.parse_args()
    pruners = ("none", options.pruner)
    totals, reached = [], []
    with tempfile.TemporaryDirectory() as name:
        for run in range(options.runs):
            started = {pruner: start(Path(name), options, seed=42 + run, pruner=pruner) for pruner in pruners}
            whole, pruned = (result(started[pruner], Path(name), 42 + run, pruner) for pruner in pruners)
            goal = best_so_far(whole, ["maximize"])
            assert goal is not None
            totals.append(seconds(pruned) / seconds(whole))
            reached.append(until(pruned, goal.combined_low or 0) / seconds(whole))
            print(
                f"run {run}: {totals[-1]:.2f} of the time in all, {reached[-1]:.2f} until as good a score", flush=True
            )
    print(f"medians: {statistics.median(totals):.2f} in all, {statistics.median(reached):.2f} until as good a score")


def start(folder: Path, options: argparse.Namespace, *, seed: int, pruner: str) -> subprocess.Popen[bytes]:
    """Start one study."""
    arguments = [
        *("-m", f"study={pruner}-{seed}", f"seed={seed}", f"hydra/sweeper/pruner={pruner}"),
        *(f"hydra.sweeper.n_trials={options.trials}", f"hydra.sweeper.storage=sqlite:///{pruner}.db"),
        f"training.pack={options.pack}",
        *("tracking.system_metrics=false", "tracking.log_adapter=false", f"tracking.uri=sqlite:///{pruner}-mlflow.db"),
        *("model=smollm2_135m", "evaluation=minilm", "evaluation.max_new_tokens=32", "evaluation.baseline=false"),
        *("data=local", f"data.train_file={options.rows.absolute()}", "data.max_train_rows=40"),
        *(
            "data.max_eval_rows=48",
            "data.max_length=200",
            "data.overlong=drop",
            "training.num_train_epochs=1",
            "training.evals_per_epoch=4",
        ),
    ]
    with (folder / f"{pruner}-{seed}.txt").open("w") as log:
        return subprocess.Popen(
            [sys.executable, str(REPOSITORY / "train.py"), *arguments],
            cwd=folder,
            stdout=log,
            stderr=log,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )


def result(process: subprocess.Popen[bytes], folder: Path, seed: int, pruner: str) -> list[TrialRecord]:
    """Wait for a study and print its line."""
    if process.wait() != 0:
        sys.exit((folder / f"{pruner}-{seed}.txt").read_text()[-2000:])
    name = f"{pruner}-{seed}"
    trials = find_study(name, f"sqlite:///{folder / pruner}.db").trials
    best = best_so_far(trials, ["maximize"])
    assert best is not None
    pruned = sum(trial.state is State.PRUNED for trial in trials)
    print(
        f"  seed {seed}, pruner {pruner:7}: {seconds(trials):6.0f} s, {pruned:2} pruned, best {best.combined:.4f} "
        f"({best.combined_low:.4f} to {best.combined_high:.4f})",
        flush=True,
    )
    return trials


def seconds(trials: list[TrialRecord]) -> float:
    """Time of all trials."""
    return sum(trial.seconds or 0 for trial in trials)


def until(trials: list[TrialRecord], goal: float) -> float:
    """Time until a trial had a score of at least `goal`; infinite if none had."""
    passed = 0.0
    for trial in sorted(trials, key=lambda trial: trial.number):
        passed += trial.seconds or 0
        if trial.combined is not None and trial.combined >= goal:
            return passed
    return float("inf")


if __name__ == "__main__":
    main()
