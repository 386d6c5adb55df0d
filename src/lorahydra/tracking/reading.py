"""Reading what a run has recorded, and copying its artifacts to this machine."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorahydra.config.schema import TrackingConfig
from lorahydra.names import ADAPTER_CONFIG_FILE, ADAPTER_DIR, ADAPTER_WEIGHTS_FILE, GENERATION_FILE, METADATA_FILE
from lorahydra.tracking.operations import CONTEXT_TAG
from lorahydra.tracking.patience import patient
from lorahydra.tracking.store import opened
from lorahydra.utils.files import replaced_dir

__all__ = [
    "Points",
    "RecordedDataset",
    "RecordedRun",
    "fetch_adapter",
    "fetch_folder",
    "read_metrics",
    "read_run",
    "read_text",
]

Points = tuple[tuple[int, float], ...]
"""Step and value of each point of a metric, in the order in which they were logged."""
ADAPTER_FILES = (ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, METADATA_FILE, GENERATION_FILE)
"""The files of an adapter; its folder may hold more, even a copy of the base model."""


@dataclass(frozen=True)
class RecordedDataset:
    """A dataset that went into a run."""

    name: str
    digest: str
    """The first 36 characters of the hash of its content."""
    source: str
    rows: int | None
    context: str
    """`training`, `validation` or `test`."""


@dataclass(frozen=True)
class RecordedRun:
    """A run as the store has it."""

    run_id: str
    name: str
    experiment: str
    """Name of its experiment."""
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    """The last value of each."""
    datasets: tuple[RecordedDataset, ...]


def read_run(config: TrackingConfig, run_id: str) -> RecordedRun:
    """Read a run without the history of its metrics."""
    with opened(config, run_id) as client:
        run = client.get_run(run_id)
        experiment = client.get_experiment(run.info.experiment_id)
    inputs = run.inputs.dataset_inputs if run.inputs is not None else []
    return RecordedRun(
        run_id=run_id,
        name=run.info.run_name or run_id,
        experiment=experiment.name,
        tags=dict(run.data.tags),
        params=dict(run.data.params),
        metrics=dict(run.data.metrics),
        datasets=tuple(_dataset(one) for one in inputs),
    )


def read_metrics(config: TrackingConfig, run_id: str) -> dict[str, Points]:
    """All points of all metrics of a run, by name."""
    with opened(config, run_id) as client:
        return {
            name: tuple((point.step, point.value) for point in client.get_metric_history(run_id, name))
            for name in sorted(client.get_run(run_id).data.metrics)
        }


def read_text(config: TrackingConfig, run_id: str, artifact: str) -> str | None:
    """A UTF-8 text among the artifacts of a run; None if it has none of this name."""
    folder, _, name = artifact.rpartition("/")
    with opened(config, run_id, artifacts=True) as client:
        if not any(Path(file.path).name == name for file in client.list_artifacts(run_id, folder or None)):
            return None
        with tempfile.TemporaryDirectory() as download:
            return Path(client.download_artifacts(run_id, artifact, download)).read_text("utf-8", "replace")


@patient
def fetch_folder(config: TrackingConfig, run_id: str, artifact: str, target: Path) -> None:
    """Copy an artifact folder of a run to `target`, in place of what is there."""
    with tempfile.TemporaryDirectory() as download:
        with opened(config, run_id, artifacts=True) as client:
            folder = client.download_artifacts(run_id, artifact, download)
        with replaced_dir(target) as temporary:
            shutil.copytree(folder, temporary, dirs_exist_ok=True)


def fetch_adapter(config: TrackingConfig, run_id: str, target: Path) -> bool:
    """Copy the adapter of a run to `target`, in place of what is there; False if the run has none."""
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


def _dataset(recorded: Any) -> RecordedDataset:
    dataset = recorded.dataset
    contexts = [tag.value for tag in recorded.tags if tag.key == CONTEXT_TAG]
    try:
        profile = json.loads(dataset.profile or "{}")
        source = json.loads(dataset.source or "{}")
    except ValueError:
        profile, source = {}, {}
    where = next((str(source[key]) for key in ("uri", "url") if key in source), dataset.source or "")
    if "path" in source:  # MLflow's type for datasets of the hub
        where = f"hub:{source['path']}"
    rows = profile.get("num_rows")
    return RecordedDataset(dataset.name, dataset.digest, where, rows, contexts[0] if contexts else "")
