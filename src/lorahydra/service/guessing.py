"""Guesses how long trials take on this machine, from the cost of the passes through the model's weights."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from lorahydra.config.schema import ExperimentConfig
from lorahydra.modeling.packaged import PACKAGED, packaged_path
from lorahydra.service.errors import Message

__all__ = ["CHARS_PER_TOKEN", "guess_trial", "judge_seconds"]

CHARS_PER_TOKEN = 4
FLOPS = {"cpu": 8e10, "cuda": 4e13}
"""Speed of training in FLOP/s: on a CPU per core with AVX-512 and in float32 (the demo takes 88 s per trial on two), on
a GPU in bfloat16."""
FACTORS = {("cpu", "bfloat16"): 2.0, ("cpu", "emulated"): 0.25, ("cuda", "float32"): 0.25}
"""How much faster other dtypes are; on a CPU measured with torch, with and without AVX512-BF16."""
BF16_FLAGS = {"avx512_bf16", "amx_bf16"}
SIZES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
"""Bytes of a weight in a file of safetensors; those of a quantised model are not counted by their size."""
GENERAL_TOKENS, GENERAL_ANSWERS = 3000, 32 * 32
"""Tokens of the texts and instructions by which forgetting is measured, and of the longest answers."""
MOST_HEADER = 100_000_000
OVERHEAD = 5.0
"""Seconds of a trial beside its passes."""


def guess_trial(config: ExperimentConfig, rows: Mapping[str, int], size: int) -> tuple[float | None, Message]:
    """Seconds per trial, and how they were guessed; None if nothing is known of the model's size.

    Args:
        config: The experiment.
        rows: Number of rows of each split.
        size: Size of all rows in bytes.
    """
    weights = weights_of(config.model.name_or_path)
    if weights is None:
        return None, Message("the size of the model is unknown", "nothing")
    row_tokens = size / CHARS_PER_TOKEN / max(1, sum(rows.values()))
    trained = row_tokens * rows_trained(config, rows.get("train", 0))
    if config.training.method == "dpo":
        trained *= 2  # the prompt is read with each of the answers, and all of it by the untuned model as well
    validation = rows.get("validation", 0)
    answers = validation * config.evaluation.max_new_tokens
    read = row_tokens * validation
    if config.evaluation.forgetting == "all":
        read, answers = read + GENERAL_TOKENS, answers + GENERAL_ANSWERS
    work = weights * (6 * trained + 2 * read + 4 * answers)
    millions, device = f"{weights / 1e6:.0f}", _device(config.model.device)
    text = f"a rough guess from {millions} million weights on {device}"
    return work / _speed(device, config.model.dtype) + OVERHEAD, Message(text, "guess", weights=millions, device=device)


def judge_seconds(model: str, prompt_tokens: int, reply_tokens: int) -> float | None:
    """Seconds of a judge on this machine; None if nothing is known of its model's size."""
    weights = weights_of(model)
    work = 2 * prompt_tokens + 4 * reply_tokens
    return None if weights is None else weights * work / _speed(_device("auto"), "auto")


def rows_trained(config: ExperimentConfig, rows: int) -> float:
    """How many rows a training reads, all epochs together."""
    training = config.training
    if training.max_steps > 0:
        return float(training.max_steps * training.per_device_train_batch_size * training.gradient_accumulation_steps)
    return rows * training.num_train_epochs


def weights_of(name: str) -> float | None:
    """Number of weights: from the files if they are on this machine, else from a name such as Qwen3-0.6B."""
    folder = packaged_path(name) if name in PACKAGED else Path(name)
    if folder is not None and folder.is_dir():
        return sum(map(_weights_in, folder.glob("*.safetensors"))) or None
    named = re.search(r"(\d+(?:\.\d+)?)([bBmM])(?![a-zA-Z])", name)
    return None if named is None else float(named[1]) * (1e9 if named[2] in "bB" else 1e6)


def _weights_in(file: Path) -> float:
    """Number of weights in a file, whatever their dtype; if its head cannot be read, as if they had two bytes each."""
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            head = json.loads(stream.read(length)) if length < MOST_HEADER else {}
        tensors = [entry for name, entry in head.items() if name != "__metadata__"]
        return float(sum(math.prod(entry["shape"]) for entry in tensors if entry["dtype"] in SIZES)) or size / 2
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return size / 2


def _device(wanted: str) -> str:
    if wanted == "auto":
        return "cuda" if Path("/proc/driver/nvidia/version").exists() else "cpu"
    return "cuda" if wanted.startswith("cuda") else "cpu"


def _speed(device: str, dtype: str) -> float:
    """FLOP/s of this machine."""
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else "bfloat16"
    if device == "cpu" and dtype != "float32" and not _multiplies_in_bfloat16():
        dtype = "emulated"
    cores = 1 if device == "cuda" else os.cpu_count() or 1
    return FLOPS[device] * FACTORS.get((device, dtype), 1.0) * cores


@cache
def _multiplies_in_bfloat16() -> bool:
    try:
        return bool(BF16_FLAGS & set(Path("/proc/cpuinfo").read_text("utf-8").split()))
    except OSError:
        return False
