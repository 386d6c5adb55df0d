"""Copying what a run has recorded to this machine."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorahydra.config.schema import TrackingConfig
from lorahydra.names import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_DIR,
    ADAPTER_WEIGHTS_FILE,
    CHAMPION,
    GENERATION_FILE,
    METADATA_FILE,
)
from lorahydra.tracking.patience import patient
from lorahydra.tracking.store import opened
from lorahydra.utils.files import replaced_dir

__all__ = ["RegisteredVersion", "fetch_adapter", "fetch_folder", "find_version", "has_run"]

ADAPTER_FILES = (ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, METADATA_FILE, GENERATION_FILE)
"""The files of an adapter; its folder may hold more, even a copy of the base model."""
UNKNOWN = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""MLflow's codes where a model, alias or version does not exist, or its name is not valid."""


@dataclass(frozen=True)
class RegisteredVersion:
    """A version of a registered model."""

    name: str
    version: str
    run_id: str | None
    """The run that made it; None for one that was registered without."""


@patient
def fetch_folder(config: TrackingConfig, run_id: str, artifact: str, target: Path) -> None:
    """Copy an artifact folder of a run to `target`, in place of what is there.

    Args:
        config: The run's store.
        run_id: The run.
        artifact: Name of the folder in the run.
        target: The folder to make.

    Raises:
        ConfigError: `config.uri` is not the address of a store.
        TrackingError: The store cannot be reached, or does not have the run or the artifact.
        OutputError: `target` cannot be written.
    """
    with tempfile.TemporaryDirectory() as download:
        with opened(config, run_id, artifacts=True) as client:
            folder = client.download_artifacts(run_id, artifact, download)
        with replaced_dir(target) as temporary:
            shutil.copytree(folder, temporary, dirs_exist_ok=True)


def fetch_adapter(config: TrackingConfig, run_id: str, target: Path) -> bool:
    """Copy the adapter of a run to `target`, in place of what is there.

    Args:
        config: The run's store.
        run_id: The run.
        target: The folder to make.

    Returns:
        Whether the run has one.

    Raises:
        ConfigError: `config.uri` is not the address of a store.
        TrackingError: The store or its artifacts cannot be read, or it does not have the run.
        OutputError: `target` cannot be written.
    """
    with opened(config, run_id, artifacts=True) as client, tempfile.TemporaryDirectory() as download:
        stored = {Path(file.path).name for file in client.list_artifacts(run_id, ADAPTER_DIR)}
        if ADAPTER_CONFIG_FILE not in stored:
            return False
        names = [f"{ADAPTER_DIR}/{name}" for name in ADAPTER_FILES if name in stored]
        files = [Path(client.download_artifacts(run_id, name, download)) for name in names]
        with replaced_dir(target) as temporary:
            for file in files:
                shutil.move(file, temporary / file.name)
    return True


def has_run(config: TrackingConfig, run_id: str) -> bool:
    """Whether the store has the run; one that was deleted counts.

    Raises:
        ConfigError: `config.uri` is not the address of a store.
        TrackingError: The store cannot be reached or read.
    """
    with opened(config) as client:
        return _or_none(client.get_run, run_id) is not None


def find_version(
    config: TrackingConfig, name: str, *, alias: str = CHAMPION, version: str | None = None
) -> RegisteredVersion | None:
    """A version of a registered model by its alias or number; None where there is none.

    Args:
        config: Its store.
        name: The registered model.
        alias: The version's alias, where no number is given.
        version: The version's number.

    Raises:
        ConfigError: `config.uri` is not the address of a store.
        TrackingError: The store cannot be reached or read.
    """
    with opened(config) as client:
        if version is None:
            stored = _or_none(client.get_model_version_by_alias, name, alias)
        else:
            stored = _or_none(client.get_model_version, name, version)
    return None if stored is None else RegisteredVersion(name, str(stored.version), stored.run_id or None)


def _or_none(get: Callable[..., Any], *names: str) -> Any:
    """What a method of the client returns; None where the store does not have it."""
    from mlflow.exceptions import MlflowException

    try:
        return get(*names)
    except MlflowException as error:
        if error.error_code not in UNKNOWN:
            raise
        return None
