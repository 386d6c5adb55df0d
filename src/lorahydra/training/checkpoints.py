"""What a checkpoint, and a training that has ended, were made with, and whether their files are whole.

Beside the files of each checkpoint stands one with their digests and the settings of the training, written last. A
training that has ended leaves the same beside its adapter. Only a training of the same settings goes on from them.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lorahydra.config.schema import LoraConfig, TrainingConfig
from lorahydra.errors import ConfigError
from lorahydra.modeling.base import BaseModel
from lorahydra.names import ADAPTER_DIR, CHECKPOINTS_DIR, TRAINING_FILE
from lorahydra.utils.files import atomic_file

__all__ = [
    "Ended",
    "Settings",
    "ended_training",
    "forget",
    "newest_checkpoint",
    "settings_of",
    "write_checkpoint",
    "write_ended",
]

logger = logging.getLogger(__name__)

Settings = Mapping[str, str]
"""What decides which adapter a training makes, as text by key."""

PREFIX = "checkpoint-"
KEPT = 2
"""Checkpoints of a training."""
STATE = "training_state.pt"
"""In a checkpoint: weights, moments, schedule and random state."""
SEAL = "lorahydra.json"
"""In a checkpoint: its settings and the digests of its files."""
FREE = {"save_steps", "resume", "logging_steps", "per_device_eval_batch_size", "divergence_factor"}
"""Of the training: what its adapter does not depend on."""
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
SHOWN = 3


def settings_of(
    base: BaseModel, lora: LoraConfig, training: TrainingConfig, seed: int, digests: Mapping[str, str]
) -> Settings:
    """The settings of a training.

    Args:
        base: The base model.
        lora: The adapter's settings.
        training: The training's.
        seed: The training's.
        digests: Of the examples, by what they are for.
    """
    values: dict[str, Any] = {f"lora.{name}": value for name, value in dataclasses.asdict(lora).items()}
    values |= {f"training.{name}": value for name, value in vars(training).items() if name not in FREE}
    values |= {"seed": seed, "model.dtype": str(base.dtype), "content of the base model": base.digest}
    values |= {f"content of the {name} rows": digest for name, digest in digests.items()}
    return {key: json.dumps(value, sort_keys=True) for key, value in values.items()}


def forget(output_dir: Path) -> None:
    """Remove what an earlier training left: a new one would take its checkpoints for its own."""
    (output_dir / TRAINING_FILE).unlink(missing_ok=True)
    if (output_dir / CHECKPOINTS_DIR).is_dir():
        shutil.rmtree(output_dir / CHECKPOINTS_DIR)


def write_checkpoint(
    output_dir: Path, settings: Settings, found: Ended, state: Mapping[str, Any], save: Callable[[Path], None]
) -> None:
    """Write what a training needs to go on, and remove what is older than the checkpoint before.

    Args:
        output_dir: Of the training.
        settings: Of the training.
        found: What is known after `found.steps` steps.
        state: Tensors, numbers and text, by name.
        save: Writes the adapter to a folder.
    """
    folder = output_dir / CHECKPOINTS_DIR / f"{PREFIX}{found.steps}"
    save(folder)
    try:
        torch.save(dict(state), folder / STATE)
    except RuntimeError as error:
        # torch.save says so when a write failed, and not why; a full disk is what it nearly always is.
        if "PytorchStreamWriter" not in str(error) and "unexpected pos" not in str(error):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
    _write(folder / SEAL, folder, [*ADAPTER_FILES, STATE], settings, dataclasses.asdict(found))
    # The one before is taken where the process died while it saved.
    for path, _ in _checkpoints(output_dir)[KEPT:]:
        shutil.rmtree(path)


def newest_checkpoint(output_dir: Path, settings: Settings) -> tuple[Ended, dict[str, Any]] | None:
    """What the newest whole checkpoint holds; None, with a warning, when there is none. What is newer is removed.

    Raises:
        ConfigError: It was made with other settings.
    """
    for path, _ in _checkpoints(output_dir):
        record = _read(path / SEAL, path)
        if record is not None:
            _check_same(record["settings"], settings, path)
        if record is None or STATE not in record["files"]:
            what = "is not whole" if record is None else "was made by another version"
            logger.warning("training.resume=true: %s %s, so the one before is taken", path, what)
            shutil.rmtree(path)
            continue
        return Ended(**record["found"]), torch.load(path / STATE, map_location="cpu", weights_only=True)
    folder = output_dir / CHECKPOINTS_DIR
    logger.warning("training.resume=true, but there is no checkpoint in %s: starting from the beginning", folder)
    return None


def _checkpoints(output_dir: Path) -> list[tuple[Path, int]]:
    """Checkpoints and their steps, the last first."""
    folders = (output_dir / CHECKPOINTS_DIR).glob(f"{PREFIX}*")
    numbered = [(path, path.name.removeprefix(PREFIX)) for path in folders]
    return sorted(((path, int(n)) for path, n in numbered if n.isdecimal()), key=lambda found: -found[1])


@dataclass(frozen=True)
class Ended:
    """What a training has found, that has ended or has got to a checkpoint."""

    eval_loss: float
    """The last that was measured; where the training has ended, that of its adapter."""
    steps: int
    seconds: float
    best_step: int = 0
    """Of the lowest validation loss; 0 where none was measured or an earlier version did not say."""


def write_ended(output_dir: Path, settings: Settings, found: Ended) -> None:
    """Say that the training has ended and its adapter is the one to take."""
    adapter = output_dir / ADAPTER_DIR
    _write(output_dir / TRAINING_FILE, adapter, ADAPTER_FILES, settings, dataclasses.asdict(found))


def ended_training(output_dir: Path, settings: Settings) -> Ended | None:
    """What the training in this folder found, when it has ended and its adapter is whole.

    Raises:
        ConfigError: It was made with other settings.
    """
    record = _read(output_dir / TRAINING_FILE, output_dir / ADAPTER_DIR)
    if record is None:
        return None
    _check_same(record["settings"], settings, output_dir / ADAPTER_DIR)
    return Ended(**record["found"])


def _write(path: Path, folder: Path, files: Sequence[str], settings: Settings, found: Mapping[str, Any]) -> None:
    digests = {name: _digest(folder / name) for name in files}
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps({"settings": settings, "files": digests, "found": found}, indent=1), "utf-8")


def _read(path: Path, folder: Path) -> dict[str, Any] | None:
    """A record, if it is there and the files in `folder` are as it says."""
    try:
        record: dict[str, Any] = json.loads(path.read_text("utf-8"))
        whole = bool(record["files"]) and all(
            _digest(folder / name) == digest for name, digest in record["files"].items()
        )
        return record if whole and dict(record["settings"]) and isinstance(record["found"], dict) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_same(before: Settings, now: Settings, place: Path) -> None:
    # A key that only one of two versions knows says nothing.
    keys = [key for key in now if key in before and before[key] != now[key]]
    if not keys:
        return
    shown = ", ".join(
        key if key.startswith("content") else f"{key}: {before[key]} → {now[key]}" for key in keys[:SHOWN]
    )
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    raise ConfigError(
        f"training.resume=true cannot go on from {place}, which was made with other settings ({shown}{more}): undo the "
        "change, or leave out training.resume=true to begin anew"
    )
