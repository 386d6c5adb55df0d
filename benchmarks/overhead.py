"""The overhead of a study: time outside training and scoring, and memory that grows.

python benchmarks/overhead.py

Runs a study of 12 short trials of the packaged 135M model in this process, and prints for each trial its wall time
outside training, generation and scoring (composing, storing, tracking, attaching, detaching), and the memory of the
process after it.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from lorahydra import LoRATuner
from lorahydra.sweep import study_sweeper
from lorahydra.trial import run as trial_run
from lorahydra.trial.steps import Trial

N_TRIALS = 12


def main() -> None:
    """Run the study and print what was found."""
    ends: list[float] = []
    memory: list[float] = []
    work: list[float] = []

    def timed(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            try:
                return original(*arguments, **options)
            finally:
                work[-1] += time.perf_counter() - started

        setattr(owner, name, call)

    timed(trial_run, "train")
    timed(Trial, "predict")
    timed(Trial, "score")
    settle = study_sweeper.StudySweeper._settle
    draw = study_sweeper.StudySweeper._draw

    def begun(self: Any, *arguments: Any) -> Any:
        work.append(0.0)
        return draw(self, *arguments)

    def settled(self: Any, *arguments: Any) -> None:
        settle(self, *arguments)
        ends.append(time.perf_counter())
        memory.append(psutil.Process().memory_info().rss / 2**20)

    study_sweeper.StudySweeper._draw = begun  # type: ignore[method-assign]
    study_sweeper.StudySweeper._settle = settled  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        run()
        os.chdir(Path(folder).parent)
    costs = [end - before - worked for before, end, worked in zip(ends, ends[1:], work[1:], strict=False)]
    for number, (cost, size) in enumerate(zip(costs, memory[1:], strict=True), start=1):
        print(f"trial {number:2}: {cost:5.2f} s beside training and scoring, {size:6.0f} MiB")
    print(
        f"median {statistics.median(costs):.2f} s; memory after trial 10 / after trial 2: {memory[10] / memory[2]:.3f}"
    )


def run() -> None:
    """A study of short trials."""
    overrides = [
        *("experiment=demo", "hydra/sweeper/pruner=none", "training.max_steps=3", "data.max_eval_rows=8"),
        *("evaluation.max_new_tokens=16", "evaluation.baseline=false", "tracking.system_metrics=false"),
    ]
    LoRATuner(n_trials=N_TRIALS, study="overhead", overrides=overrides).run()


if __name__ == "__main__":
    main()
