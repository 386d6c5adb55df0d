"""Bringing back what a run has recorded, for whoever does not have it on disk."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from lorahydra.config.schema import TrackingConfig
from lorahydra.storage import replaced_dir
from lorahydra.tracking.address import resolve
from lorahydra.tracking.store import active_run, connect, talking_to

__all__ = ["fetch_folder"]


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
        with talking_to(uri):
            found = Path(client.download_artifacts(run_id, artifact, download))
        shutil.copytree(found, temporary, dirs_exist_ok=True)
