"""Bringing back what a run has recorded, for whoever does not have it on disk."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lorahydra.config.schema import TrackingConfig
from lorahydra.names import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_DIR,
    ADAPTER_WEIGHTS_FILE,
    CHAMPION,
    GENERATION_FILE,
    METADATA_FILE,
)
from lorahydra.tracking.address import resolve
from lorahydra.tracking.patience import patient
from lorahydra.tracking.store import active_run, connect, talking_to, talking_to_artifacts
from lorahydra.utils.files import replaced_dir

__all__ = ["RegisteredVersion", "fetch_adapter", "fetch_folder", "find_version", "has_run"]

ADAPTER_FILES = (ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, METADATA_FILE, GENERATION_FILE)
"""What an adapter is; its folder may hold more, up to a copy of the base model."""
UNKNOWN = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""MLflow's codes for a model, alias or version that is not there, or whose name none could have."""


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
        ConfigError: The address cannot be.
        TrackingError: The store cannot be reached, or does not have the run or the artifact.
        OutputError: `target` cannot be written.
    """
    uri = resolve(config.uri)
    client = connect(uri, create=False)
    active_run(client, uri, run_id)
    with replaced_dir(target) as temporary, tempfile.TemporaryDirectory() as download:
        with talking_to_artifacts(uri):
            found = Path(client.download_artifacts(run_id, artifact, download))
        shutil.copytree(found, temporary, dirs_exist_ok=True)


def fetch_adapter(config: TrackingConfig, run_id: str, target: Path) -> bool:
    """Copy the adapter of a run to `target`, in place of what is there.

    Args:
        config: The run's store.
        run_id: The run.
        target: The folder to make.

    Returns:
        Whether the run has one.

    Raises:
        ConfigError: The address cannot be.
        TrackingError: The store or its artifacts cannot be read, or it does not have the run.
        OutputError: `target` cannot be written.
    """
    uri = resolve(config.uri)
    client = connect(uri, create=False)
    active_run(client, uri, run_id)
    with talking_to_artifacts(uri), tempfile.TemporaryDirectory() as download:
        there = {Path(found.path).name for found in client.list_artifacts(run_id, ADAPTER_DIR)}
        if ADAPTER_CONFIG_FILE not in there:
            return False
        files = [
            Path(client.download_artifacts(run_id, f"{ADAPTER_DIR}/{name}", download))
            for name in ADAPTER_FILES
            if name in there
        ]
        with replaced_dir(target) as temporary:
            for file in files:
                shutil.move(file, temporary / file.name)
    return True


def has_run(config: TrackingConfig, run_id: str) -> bool:
    """Whether the store has the run; one that was deleted counts.

    Raises:
        ConfigError: The address cannot be.
        TrackingError: The store cannot be reached or read.
    """
    uri = resolve(config.uri)
    client = connect(uri, create=False)
    from mlflow.exceptions import MlflowException

    with talking_to(uri):
        try:
            client.get_run(run_id)
        except MlflowException as error:
            if error.error_code not in UNKNOWN:
                raise
            return False
    return True


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
        ConfigError: The address cannot be.
        TrackingError: The store cannot be reached or read.
    """
    uri = resolve(config.uri)
    client = connect(uri, create=False)
    from mlflow.exceptions import MlflowException

    with talking_to(uri):
        try:
            if version is None:
                found = client.get_model_version_by_alias(name, alias)
            else:
                found = client.get_model_version(name, version)
        except MlflowException as error:
            if error.error_code not in UNKNOWN:
                raise
            return None
    return RegisteredVersion(name, str(found.version), found.run_id or None)
