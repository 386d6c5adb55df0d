"""Whole studies, started by the command, on models with random weights and rows that are made up."""

import copy
import csv
import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from tests.support.models import make_tiny_encoder, write_byte_tokenizer  # noqa: E402

ROWS = 700


@dataclasses.dataclass
class Study:
    """How a study went."""

    trials: int
    """Those that ended, pruned ones included."""
    pruned: int
    seconds: float
    """From the beginning of the first trial to the end of the last one."""
    scores: dict[str, str]
    """Of the trials that were not pruned, by learning rate."""


def write_model(folder: Path, shape: Any, dtype: torch.dtype, device: str) -> None:
    """A model of this shape with random weights, and a tokenizer of bytes."""
    tokens = write_byte_tokenizer(folder)
    config = copy.deepcopy(shape)
    config.vocab_size = max(config.vocab_size, len(tokens))
    config.eos_token_id, config.pad_token_id = tokens["<|im_end|>"], tokens["<|endoftext|>"]
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).to(device)
    model.save_pretrained(folder)


def run_study(work: Path, name: str, about: str, length: int, *settings: str, **variables: str) -> Study | None:
    """Run a study in the folder `work` on the model in `work/model`, and print how it went.

    Args:
        work: Receives everything.
        name: Of the study.
        about: What to print.
        length: Sentences before the question of each row.
        settings: Further overrides.
        variables: Of the environment.

    Returns:
        None if the study did not come to an end.
    """
    # The scores mean nothing, and the time is that of a real small encoder.
    sizes = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    make_tiny_encoder(work / "encoder", **sizes)
    text = "This sentence makes the request long. " * length
    rows = [{"question": f"{text}What is {n}+{n}?", "answer": f"{n}+{n} is {2 * n}, of course."} for n in range(ROWS)]
    (work / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    command = [
        *(sys.executable, str(REPOSITORY / "train.py"), "-m", f"study={name}"),
        *("model=local", f"model.name_or_path={work / 'model'}"),
        *("data=local", "data.train_file=rows.jsonl", "data.max_length=2048"),
        *("data.validation_fraction=0.03", "data.test_fraction=0.03"),
        *(f"evaluation.bertscore_model={work / 'encoder'}", "evaluation.bertscore_num_layers=6"),
        "evaluation.max_new_tokens=32",
        *("hydra/sweeper/sampler=grid", "hydra/sweeper/pruner=none", *settings),
    ]
    environment = (
        os.environ
        | variables
        | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY / "src"), os.environ.get("PYTHONPATH", "")])}
    )
    started = time.perf_counter()
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
    print(f"study of {about}: exit code {done.returncode}", end="")
    print(f" after {time.perf_counter() - started:.0f} s", flush=True)
    lines = (done.stdout + done.stderr).splitlines()
    told = re.compile(r"[Oo]ut of memory|helped|Test|Error|winner|Winner")
    print("\n".join(f"  {line[:200]}" for line in lines if told.search(line)))
    if done.returncode:
        print((done.stdout + done.stderr)[-3000:])
    begun = [_stamp(line) for line in lines if re.search(r"Trial \d+ begins", line)]
    ended = [_stamp(line) for line in lines if re.search(r"Study .*\d of \d+ trials", line)]
    board = work / "outputs" / name / "leaderboard.csv"
    if not board.is_file():
        return None
    trials = list(csv.DictReader(board.open(encoding="utf-8")))
    pruned = sum(trial["state"] == "pruned" for trial in trials)
    scores = {trial.get("training.learning_rate", ""): trial["combined"] for trial in trials if trial["combined"]}
    return Study(len(trials), pruned, (ended[-1] - begun[0]).total_seconds(), scores)


def _stamp(line: str) -> datetime:
    """When a line was logged."""
    return datetime.strptime(line[1:24], "%Y-%m-%d %H:%M:%S,%f")
