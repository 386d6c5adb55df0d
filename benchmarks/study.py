"""A whole study against a script with TRL and Optuna: time, and how good the adapter is that it chooses.

    python -m pip install -c constraints.txt -e ".[benchmark]"
    lorahydra models fetch smollm2-135m-instruct && lorahydra models fetch all-minilm-l6-v2
    python benchmarks/study.py --surface benchmarks/surfaces/smollm2-demo.parquet --seeds 1 2

The study has ten trials with the shipped search, pruner and sampler, on the rows and settings of the surface, which
`surfaces/make.py` recorded. It includes the untuned model, the test split and MLflow. The script searches the same
space with Optuna's TPE in sixteen trials; `--script-trials` runs fewer of them and multiplies their mean.

Printed are the time of both (also in CPU seconds, which other work on the machine changes less), after which trial
the study's best score was within 0.005 of the best cell of the surface on the same validation rows, and how far the
chosen trial is from that cell.
"""

import argparse
import csv
import json
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY)]

from benchmarks.surfaces import make  # noqa: E402
from benchmarks.trial import Usage, measured  # noqa: E402

from lorahydra.config.schema import ModelConfig  # noqa: E402
from lorahydra.modeling.packaged import packaged_path  # noqa: E402

TRIALS, SCRIPT_TRIALS = 10, 16
NEAR = 0.005


def study_command(rows: dict[str, Path], out: Path, seed: int, options: argparse.Namespace) -> list[str]:
    """The study as a user starts it."""
    return [
        *(sys.executable, str(REPOSITORY / "train.py"), "-m", "study=measured", f"seed={seed}"),
        *("model=smollm2_135m", "evaluation=minilm", "data=local", "data.max_leakage=1.0", "data.overlong=drop"),
        *(f"data.{name}={path}" for name, path in rows.items()),
        *("training.num_train_epochs=2", "training.evals_per_epoch=2", "evaluation.max_new_tokens=48"),
        *(f"hydra.sweeper.n_trials={TRIALS}", f"hydra.sweep.dir={out / 'study'}", *options.options),
    ]


def script_command(rows: dict[str, Path], out: Path, seed: int, options: argparse.Namespace) -> list[str]:
    """The same task for the script."""
    return [
        *(sys.executable, str(REPOSITORY / "benchmarks" / "baseline_trl.py"), f"--out={out}", f"--seed={seed}"),
        f"--model={packaged_path('smollm2-135m-instruct')}",
        f"--encoder={packaged_path('all-minilm-l6-v2')}",
        *(f"--train={rows['train_file']}", f"--validation={rows['validation_file']}"),
        *("--epochs=2", "--new-tokens=48", f"--trials={options.script_trials}"),
    ]


def best_cell(path: Path) -> float:
    """The highest mean of a cell over its seeds on the validation rows."""
    cells: dict[tuple[float, int], list[float]] = {}
    for trial in pq.read_table(path).to_pylist():
        if trial["r"] and trial["validation"]:
            cells.setdefault((trial["learning_rate"], trial["r"]), []).append(float(np.mean(trial["validation"])))
    return max(map(statistics.mean, cells.values()))


def main() -> None:
    """Run the studies and the script, and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--surface", type=Path, required=True, help="a file of surfaces/make.py on the demo rows")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--script-trials", type=int, default=SCRIPT_TRIALS, help="0 leaves the script out")
    parser.add_argument("--options", nargs="*", default=[], help="further overrides of the study")
    options = parser.parse_args()
    best = best_cell(options.surface)
    print(f"best cell of {options.surface.name} on the validation rows: {best:.4f}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        asked = make.arguments(["--rows=demo", "--out=-", *make.RECORDED])
        rows = make.choose_rows(asked, ModelConfig(name_or_path=asked.model), work)
        for seed in options.seeds:
            out = work / f"study-{seed}"
            out.mkdir()
            study = measured(study_command(rows, out, seed, options), out)
            show_study(out, best, seed, study)
            if options.script_trials:
                out = work / f"script-{seed}"
                out.mkdir()
                script = measured(script_command(rows, out, seed, options), out)
                result = json.loads((out / "result.json").read_text("utf-8"))
                wall, cpu = (statistics.mean(result[each]) * SCRIPT_TRIALS for each in ("seconds", "cpu_seconds"))
                print(
                    f"seed {seed} script: {options.script_trials} trials in {script.seconds:.0f} s, "
                    f"{script.memory:.2f} GB, best {result['bertscore_f1']:.4f}; "
                    f"{SCRIPT_TRIALS} trials {wall:.0f} s ({cpu:.0f} CPU s); "
                    f"study / script {study.seconds / wall:.3f} ({study.cpu_seconds / cpu:.3f} of the CPU time)",
                    flush=True,
                )


def show_study(out: Path, best: float, seed: int, usage: Usage) -> None:
    """Print how a study went."""
    [file] = (out / "study").rglob("leaderboard.csv")
    with file.open(encoding="utf-8") as stream:
        trials = sorted(csv.DictReader(stream), key=lambda row: int(row["number"]))
    scores = [float(row["combined"]) if row["combined"] else -np.inf for row in trials]
    near = next((number for number, score in enumerate(scores, 1) if score >= best - NEAR), None)
    print(
        f"seed {seed} study: {len(trials)} trials in {usage.seconds:.0f} s ({usage.cpu_seconds:.0f} CPU s), "
        f"{usage.memory:.2f} GB, best {max(scores):.4f} ({max(scores) - best:+.4f}), within {NEAR} after {near} trials",
        flush=True,
    )


if __name__ == "__main__":
    main()
