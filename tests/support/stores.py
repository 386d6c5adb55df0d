"""What is in an MLflow store, as MLflow's own client finds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def client_of(store: Path | str) -> Any:
    """MLflow's client of the SQLite store in a folder, or of the store at an address."""
    from mlflow import MlflowClient

    return MlflowClient(store if isinstance(store, str) else f"sqlite:///{store / 'mlflow.db'}")


def runs_of(store: Path | str, kind: str | None = None) -> list[Any]:
    """All runs of a store, the oldest first; with `kind`, those of that kind."""
    client = client_of(store)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, order_by=["attributes.start_time ASC"])
    return [run for run in runs if kind is None or run.data.tags.get("lorahydra.kind") == kind]


def artifacts_of(client: Any, run_id: str, path: str = "") -> set[str]:
    """Paths of all files among the artifacts of a run, below `path`."""
    paths: set[str] = set()
    for entry in client.list_artifacts(run_id, path):
        paths |= artifacts_of(client, run_id, entry.path) if entry.is_dir else {entry.path}
    return paths
