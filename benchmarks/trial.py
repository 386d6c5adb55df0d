"""One trial against TRL's SFTTrainer + generate + bert_score, interleaved A B A B: time, peak memory and loss.

    python -m pip install -c constraints.txt -e ".[benchmark]"
    lorahydra models fetch smollm2-135m-instruct && lorahydra models fetch all-minilm-l6-v2
    python benchmarks/trial.py --rows path/to/gsm8k/train.jsonl --runs 3

Both sides are whole processes, from the first import to the last result; lorahydra's includes MLflow. The file's first
96 rows are for training and the next 24 for validation. Losses are measured afterwards by one function for both
adapters. Each run has another seed for both sides, because the loss depends on it more than on the program.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lorahydra.modeling.packaged import packaged_path

REPOSITORY = Path(__file__).resolve().parents[1]
TRAIN_ROWS, EVAL_ROWS = 96, 24


def measured(command: list[str], folder: Path) -> tuple[float, float]:
    """Run a command; returns seconds and peak memory in GB."""
    log = (folder / "log.txt").open("w")
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if status:
        sys.exit(f"{' '.join(command)} failed:\n{(folder / 'log.txt').read_text()[-3000:]}")
    return seconds, usage.ru_maxrss / 2**20


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
    """Run both sides in turn and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", required=True, type=Path, help="JSONL with question and answer")
    parser.add_argument("--runs", type=int, default=3, help="runs of each side")
    parser.add_argument("options", nargs="*", help="further overrides for lorahydra's side")
    options = parser.parse_args()
    lines = options.rows.read_text("utf-8").splitlines()
    results: dict[str, list[tuple[float, float]]] = {"lorahydra": [], "TRL": []}
    losses: dict[str, list[float]] = {"lorahydra": [], "TRL": []}
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
                command = (
                    lorahydra_command(train, validation, out, 42 + run, options.options)
                    if side == "lorahydra"
                    else trl_command(train, validation, out, 42 + run)
                )
                seconds, memory = measured(command, out)
                results[side].append((seconds, memory))
                losses[side].append(validation_loss(out / "adapter", eval_rows))
                print(f"run {run} {side:9} {seconds:7.1f} s  {memory:5.2f} GB  loss {losses[side][-1]:.4f}", flush=True)
    ratios = [a[0] / b[0] for a, b in zip(results["lorahydra"], results["TRL"], strict=True)]
    print(f"time ratio, pair by pair: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")
    print(f"median time ratio: {statistics.median(ratios):.2f}")
    for side, runs in results.items():
        times, memories = zip(*runs, strict=True)
        loss = statistics.mean(losses[side])
        print(f"{side:9} {statistics.median(times):.1f} s, {statistics.median(memories):.2f} GB, mean loss {loss:.4f}")


if __name__ == "__main__":
    main()
