"""Does an interrupt ever get lost? Ctrl-C at many moments of a study, with the processor busy.

python benchmarks/interrupts.py --moments 60 --load 2

Each round begins a small real study (a tiny random model, real training, generation and BERTScore), sends SIGINT at
another moment, shortly after some line of its log, and checks: exit code 130, one line on stderr, no trial and no
MLflow run left open. Studies are forked from one process that has imported everything, so that a round takes seconds.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from benchmarks.survival import prepare, trials_of  # noqa: E402
from tests.conftest import WHOLE_PROGRAM  # noqa: E402
from tests.support.programs import ProgramRunner, RunningProgram  # noqa: E402

N_TRIALS = 2


def main() -> None:
    """Run the rounds and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=60)
    parser.add_argument("--load", type=int, default=0, help="processes that only keep the processor busy")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    load = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(options.load)]
    runner = ProgramRunner(WHOLE_PROGRAM)
    try:
        with tempfile.TemporaryDirectory() as name:
            good = run(Path(name), runner, options.moments, random.Random(options.seed))
    finally:
        runner.close()
        for process in load:
            process.kill()
    print(f"{good} of {options.moments}")
    sys.exit(good != options.moments)


def run(folder: Path, runner: ProgramRunner, moments: int, drawn: random.Random) -> int:
    """Run all rounds; returns how many went well."""
    prepare(folder)
    began = time.perf_counter()
    if code := start(runner, folder / "whole", folder).wait():
        sys.exit(f"exit code {code}: {(folder / 'whole' / 'output.txt').read_text()[-2000:]}")
    duration = time.perf_counter() - began
    first, last = lines_of(folder / "whole", "Study small begins"), lines_of(folder / "whole")
    pause = duration / (last - first)
    print(f"uninterrupted: {duration:.1f} s, {last} lines")
    good = number = 0
    while number < moments:
        line, later = drawn.randint(first, last), drawn.uniform(0, 2 * pause)
        place = folder / f"moment-{number}"
        program = start(runner, place, folder)
        program.wait_for(lambda: lines_of(place) >= line or program.poll() is not None)  # noqa: B023 (called at once)
        time.sleep(later)
        if program.poll() is not None:
            shutil.rmtree(place)
            continue  # too late to be one of the moments
        program.send_signal(signal.SIGINT)
        sent = time.perf_counter()
        code = program.wait()
        faults = check(place, code)
        good += not faults
        seconds = time.perf_counter() - sent
        print(f"line {line} + {later:4.2f} s: ended in {seconds:4.1f} s, {'; '.join(faults) or 'ok'}", flush=True)
        number += 1
    return good


def start(runner: ProgramRunner, place: Path, folder: Path) -> RunningProgram:
    """Begin the study in `place`."""
    place.mkdir()
    (place / "train.py").write_text(
        f"import runpy\nrunpy.run_path({str(REPOSITORY / 'train.py')!r}, run_name='__main__')\n"
    )
    words = (
        *("-m", "study=small", f"hydra.sweeper.n_trials={N_TRIALS}", "tracking.system_metrics=false"),
        *("model=local", f"model.name_or_path={folder / 'tiny'}", "model.device=cpu", "training.max_steps=2"),
        *("evaluation=minilm", "evaluation.max_new_tokens=6", "data=local", f"data.train_file={folder / 'rows.jsonl'}"),
        *("training.learning_rate=tag(log, interval(1e-4, 1e-1))", "lora.r=choice(2, 4, 8)"),
    )
    return runner.start([str(place / "train.py"), *words], place, output=place / "output.txt")


def lines_of(place: Path, text: str = "") -> int:
    """Lines that a study has printed, up to the first one with `text`."""
    file = place / "output.txt"
    lines = file.read_text().splitlines() if file.is_file() else []
    return next((number for number, line in enumerate(lines, 1) if text and text in line), len(lines))


def check(place: Path, code: int) -> list[str]:
    """The faults of a study that was interrupted."""
    from mlflow import MlflowClient

    text = (place / "output.txt").read_text()
    faults = [] if code == 130 else [f"exit code {code}"]
    last = [line for line in text.splitlines() if line.startswith("lorahydra: ")]
    all_said = "HYDRA] MLflow run" in text and not last  # it came when the process was about to end
    if (len(last) != 1 and not all_said) or "Traceback" in text or "Exception ignored" in text:
        faults.append(f"ended with {text[-400:]!r}")
    if still_open := trials_of(place)[1]:
        faults.append(f"trials {still_open} still open")
    client: Any = MlflowClient(f"sqlite:///{place / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("lorahydra")
    for run in client.search_runs([experiment.experiment_id]) if experiment else []:
        if run.info.status == "RUNNING":
            faults.append(f"run {run.info.run_name} still open")
    return faults


if __name__ == "__main__":
    main()
