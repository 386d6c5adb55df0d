"""One trial against TRL's SFTTrainer + generate + bert_score, interleaved A B C A B C: time, peak memory and quality.

    python -m pip install -c constraints.txt -e ".[benchmark]"
    lorahydra models fetch smollm2-135m-instruct && lorahydra models fetch all-minilm-l6-v2
    python benchmarks/trial.py --rows path/to/gsm8k/train.jsonl --runs 3

Sides are lorahydra with `training.matmul_precision=highest` and `medium`, and TRL; `--sides highest medium` leaves TRL
out. Each is a whole process, from the first import to the last result; lorahydra's includes MLflow. The file's first
96 rows are for training and the next 24 for validation. Losses are measured afterwards by one function for all
adapters. Each run has another seed for all sides, because the loss depends on it more than on the program.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lorahydra.modeling.packaged import packaged_path

REPOSITORY = Path(__file__).resolve().parents[1]
TRAIN_ROWS, EVAL_ROWS = 96, 24
SIDES = ("highest", "medium", "trl")


class Usage(NamedTuple):
    """What a command took."""

    seconds: float
    memory: float
    """Its peak, in GB."""
    cpu_seconds: float


def measured(command: list[str], folder: Path) -> Usage:
    """Run a command."""
    log = (folder / "log.txt").open("w")
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if status:
        sys.exit(f"{' '.join(command)} failed:\n{(folder / 'log.txt').read_text()[-3000:]}")
    return Usage(seconds, usage.ru_maxrss / 2**20, usage.ru_utime + usage.ru_stime)


def lorahydra_command(train: Path, validation: Path, out: Path, seed: int, options: list[str]) -> list[str]:
    """The trial as a user starts it."""
    return [
        sys.executable,
        str(REPOSITORY / "train.py"),
        "model=smollm2_135m",
        "evaluation=minilm",
        "data=local",
        f"data.train_file={train}",
        f"data.validation_file={validation}",
        "training.num_train_epochs=1",
        "training.per_device_train_batch_size=4",
        "training.learning_rate=2e-4",
        "evaluation.max_new_tokens=96",
        # Both sides train on all rows of the file.
        "data.test_fraction=0",
        # The script that it is compared with does not score the untuned model either.
        "evaluation.baseline=false",
        f"hydra.run.dir={out}",
        f"seed={seed}",
        *options,
    ]


def trl_command(train: Path, validation: Path, out: Path, seed: int) -> list[str]:
    """The same work with the TRL script."""
    return [
        sys.executable,
        str(REPOSITORY / "benchmarks" / "baseline_trl.py"),
        f"--model={packaged_path('smollm2-135m-instruct')}",
        f"--encoder={packaged_path('all-minilm-l6-v2')}",
        f"--train={train}",
        f"--validation={validation}",
        f"--out={out}",
        f"--seed={seed}",
    ]


def validation_loss(adapter: Path, rows: list[dict[str, str]]) -> float:
    """Mean loss per answer token, by plain transformers, one row at a time."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = packaged_path("smollm2-135m-instruct")
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter).eval()
    total, tokens = 0.0, 0
    for row in rows:
        question = [{"role": "user", "content": row["question"]}]
        prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=True)["input_ids"]
        answer = tokenizer(row["answer"] + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
        labels = torch.tensor([[-100] * len(prompt) + answer])
        with torch.no_grad():
            loss = model(input_ids=torch.tensor([prompt + answer]), labels=labels).loss
        total, tokens = total + float(loss) * len(answer), tokens + len(answer)
    return total / tokens


def main() -> None:
    """Run all sides in turn and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", required=True, type=Path, help="JSONL with question and answer")
    parser.add_argument("--runs", type=int, default=3, help="runs of each side, each with another seed")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--options", nargs="*", default=[], help="further overrides for lorahydra's sides")
    options = parser.parse_args()
    lines = options.rows.read_text("utf-8").splitlines()
    results: dict[str, list[tuple[float, ...]]] = {side: [] for side in options.sides}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        train, validation = work / "train.jsonl", work / "validation.jsonl"
        train.write_text("\n".join(lines[:TRAIN_ROWS]), "utf-8")
        validation.write_text("\n".join(lines[TRAIN_ROWS : TRAIN_ROWS + EVAL_ROWS]), "utf-8")
        eval_rows = [json.loads(line) for line in validation.read_text("utf-8").splitlines()]
        for run in range(options.runs):
            for side in results:
                out = work / f"{side}-{run}"
                out.mkdir()
                files = (train, validation, out, 42 + run)
                overrides = [f"training.matmul_precision={side}", *options.options]
                command = trl_command(*files) if side == "trl" else lorahydra_command(*files, overrides)
                seconds, memory, _ = measured(command, out)
                results[side].append((seconds, memory, validation_loss(out / "adapter", eval_rows), score(out)))
                print(f"run {run} {side:8} {shown(results[side][-1])}", flush=True)
    for side, runs in results.items():
        print(f"median {side:8} {shown([statistics.median(values) for values in zip(*runs, strict=True)])}")
        last = results[options.sides[-1]]
        ratios = [(a[0] / b[0], a[1] / b[1]) for a, b in zip(runs, last, strict=True)]
        print(f"  of {options.sides[-1]}: time and memory {', '.join(f'{t:.2f} {m:.2f}' for t, m in ratios)}")


def score(out: Path) -> float:
    """BERTScore F1 of a side's predictions."""
    if (results := out / "result.json").exists():
        return float(json.loads(results.read_text("utf-8"))["bertscore_f1"])
    [found, *_] = re.findall(r"BERTScore=([\d.]+)", (out / "log.txt").read_text("utf-8")) or ["nan"]
    return float(found)


def shown(figures: Sequence[float]) -> str:
    """A line of the table."""
    seconds, memory, loss, f1 = figures
    return f"{seconds:7.1f} s  {memory:5.2f} GB  loss {loss:.4f}  BERTScore F1 {f1:.4f}"


if __name__ == "__main__":
    main()
