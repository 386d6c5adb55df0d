"""The folder of a training: its checkpoints, and the record that it has ended.

Each checkpoint has a file with the digests of its other files and the settings of the training, which is written last.
A training that has ended leaves such a file beside its adapter. Only a training with the same settings goes on from
them.
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
from pathlib import Path
from typing import Any

import torch

from lorahydra.errors import ConfigError
from lorahydra.modeling.base import BaseModel
from lorahydra.names import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_DIR,
    ADAPTER_WEIGHTS_FILE,
    CHECKPOINTS_DIR,
    TRAINING_FILE,
)
from lorahydra.training.jobs import TrainedAdapter, TrainingJob
from lorahydra.utils.files import atomic_file

__all__ = ["TrainingFolder", "training_settings"]

logger = logging.getLogger(__name__)

PREFIX = "checkpoint-"
KEPT = 2
"""Checkpoints of a training that are kept: the earlier one is used if the process died while it saved the last."""
STATE = "training_state.pt"
"""In a checkpoint: weights, moments, schedule and random state."""
RECORD = "lorahydra.json"
"""In a checkpoint: its settings and the digests of its files."""
WITHOUT_EFFECT = {
    *("save_steps", "resume", "logging_steps", "per_device_eval_batch_size", "divergence_factor", "pack"),
    "seed",  # that of the job counts
}
"""Settings of a training that do not change its adapter."""
ADAPTER_FILES = (ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE)
SHOWN = 3
"""Largest number of settings that an error message names."""


def training_settings(base: BaseModel, job: TrainingJob, digests: Mapping[str, str]) -> dict[str, str]:
    """Everything that decides which adapter a training makes, as text by key.

    Args:
        base: The base model.
        job: The training.
        digests: Digests of the rows, by their use.
    """
    values: dict[str, Any] = {f"lora.{name}": value for name, value in dataclasses.asdict(job.lora).items()}
    values |= {f"training.{name}": value for name, value in vars(job.training).items() if name not in WITHOUT_EFFECT}
    values |= {"seed": job.seed, "model.dtype": str(base.dtype), "content of the base model": base.digest}
    values |= {f"content of the {name} rows": digest for name, digest in digests.items()}
    return {key: json.dumps(value, sort_keys=True) for key, value in values.items()}


class TrainingFolder:
    """The output folder of a training.

    Args:
        path: The folder.
        settings: What decides which adapter the training makes, from `training_settings`.
    """

    def __init__(self, path: Path, settings: Mapping[str, str]) -> None:
        self.path = path
        self.adapter = path / ADAPTER_DIR
        self._settings = settings

    def clear(self) -> None:
        """Remove the checkpoints and the record of an earlier training, so that a new one does not resume from them."""
        (self.path / TRAINING_FILE).unlink(missing_ok=True)
        if (self.path / CHECKPOINTS_DIR).is_dir():
            shutil.rmtree(self.path / CHECKPOINTS_DIR)

    def write_checkpoint(
        self, progress: TrainedAdapter, state: Mapping[str, Any], save: Callable[[Path], None]
    ) -> None:
        """Write a checkpoint, and remove those that are no longer needed.

        Args:
            progress: The training so far.
            state: Tensors, numbers and text, by name.
            save: Writes the adapter to a folder.
        """
        folder = self.path / CHECKPOINTS_DIR / f"{PREFIX}{progress.steps}"
        save(folder)
        try:
            torch.save(dict(state), folder / STATE)
        except RuntimeError as error:
            # torch.save reports that a write failed, but not why; nearly always the disk is full.
            if "PytorchStreamWriter" not in str(error) and "unexpected pos" not in str(error):
                raise
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        self._write(folder / RECORD, folder, [*ADAPTER_FILES, STATE], progress)
        for path in self._checkpoints()[KEPT:]:
            shutil.rmtree(path)

    def newest_checkpoint(self) -> tuple[TrainedAdapter, dict[str, Any]] | None:
        """The training up to its newest complete checkpoint, and the state there; damaged newer ones are removed.

        Returns:
            None, with a warning, if there is no complete checkpoint.

        Raises:
            ConfigError: It was made with other settings.
        """
        for path in self._checkpoints():
            record = self._read(path / RECORD, path)
            if record is not None and STATE in record["files"]:
                state = torch.load(path / STATE, map_location="cpu", weights_only=True)
                return TrainedAdapter(path, **record["found"]), state
            what = "is not whole" if record is None else "was made by another version"
            logger.warning("training.resume=true: %s %s, so the one before is taken", path, what)
            shutil.rmtree(path)
        folder = self.path / CHECKPOINTS_DIR
        logger.warning("training.resume=true, but there is no checkpoint in %s: starting from the beginning", folder)
        return None

    def mark_ended(self, trained: TrainedAdapter) -> None:
        """Record that the training has ended and that `trained` is its adapter."""
        self._write(self.path / TRAINING_FILE, trained.folder, ADAPTER_FILES, trained)

    def ended(self) -> TrainedAdapter | None:
        """The adapter of a training that has ended, if its files are complete.

        Raises:
            ConfigError: It was made with other settings.
        """
        record = self._read(self.path / TRAINING_FILE, self.adapter)
        return None if record is None else TrainedAdapter(self.adapter, **record["found"])

    def _checkpoints(self) -> list[Path]:
        """The folders of the checkpoints, the last step first."""
        folders = (self.path / CHECKPOINTS_DIR).glob(f"{PREFIX}*")
        steps = {path: path.name.removeprefix(PREFIX) for path in folders}
        return sorted((path for path in steps if steps[path].isdecimal()), key=lambda path: -int(steps[path]))

    def _write(self, path: Path, folder: Path, files: Sequence[str], trained: TrainedAdapter) -> None:
        results = {name: value for name, value in vars(trained).items() if name != "folder"}
        record = {
            "settings": self._settings,
            "files": {name: _digest(folder / name) for name in files},
            "found": results,
        }
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(record, indent=1), "utf-8")

    def _read(self, path: Path, folder: Path) -> dict[str, Any] | None:
        """A record, if it exists and the files in `folder` have the digests in it."""
        try:
            record: dict[str, Any] = json.loads(path.read_text("utf-8"))
            if not record["files"] or any(_digest(folder / name) != value for name, value in record["files"].items()):
                return None
            before = dict(record["settings"])
            if not before or not isinstance(record["found"], dict):
                return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        # A key that only one of two versions writes proves nothing.
        changed = [key for key, value in self._settings.items() if before.get(key, value) != value]
        if changed:
            shown = ", ".join(
                key if key.startswith("content") else f"{key}: {before[key]} → {self._settings[key]}"
                for key in changed[:SHOWN]
            )
            more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
            raise ConfigError(
                f"training.resume=true cannot go on from {folder}, which was made with other settings ({shown}{more}): "
                "undo the change, or leave out training.resume=true to begin anew"
            )
        return record


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
