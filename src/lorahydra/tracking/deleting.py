"""Deleting what studies have recorded: runs with their artifacts and traces, and the versions of registered models.

A run that only repeats or scores a run of a study (`lorahydra reproduce`, `lorahydra evaluate`) belongs to the study:
its predictions were made from the same data.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lorahydra.config.schema import TrackingConfig
from lorahydra.names import Tag
from lorahydra.tracking.address import is_server, resolve
from lorahydra.tracking.children import clause, search
from lorahydra.tracking.compat import delete_artifacts, erase_runs, erase_version, logged_models
from lorahydra.tracking.database import is_made
from lorahydra.tracking.store import opened
from lorahydra.tracking.views import forget_views
from lorahydra.utils.databases import erase_deleted, local_path, sqlite_file
from lorahydra.utils.files import remove, size_of

__all__ = ["StoredRuns", "delete_runs", "stored_runs"]

logger = logging.getLogger(__name__)

REFERRING = (Tag.REPRODUCES, Tag.EVALUATES, Tag.CONTINUES)
"""Tags whose value is the id of another run."""
SECONDS_TO_ERASE = 30
IDS_AT_ONCE = 100
"""Runs that are named in one question to the store."""


@dataclass(frozen=True)
class StoredRuns:
    """What a store has of some studies."""

    run_ids: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    """Names of the registered models that have versions made by these runs."""
    size: int = 0
    """Of the artifacts in bytes, as far as they are on this machine."""


def stored_runs(config: TrackingConfig, studies: Collection[str]) -> StoredRuns:
    """What a store has of these studies, in all experiments and with the runs in MLflow's trash."""
    if not _exists(config):
        return StoredRuns()
    with opened(config) as client:
        runs = _runs(client, studies)
        ids = [run.info.run_id for run in runs]
        models = {version.name for version in _versions(client, ids)}
        places = [run.info.artifact_uri for run in runs]
        if not is_server(client.tracking_uri):
            places += logged_models(client, ids).values()
    folders = [folder for place in places if (folder := _folder(place)) is not None]
    return StoredRuns(tuple(ids), tuple(sorted(models)), sum(map(size_of, folders)))


def delete_runs(config: TrackingConfig, studies: Collection[str]) -> None:
    """Delete the runs of these studies for good, with their artifacts, traces, dataset inputs and registered versions.

    A registered model goes with its last version. Of a SQLite store, nothing is left in free pages either. An MLflow
    server keeps deleted runs until `mlflow gc` is run there. What was interrupted is finished by another call.

    Raises:
        TrackingError: The store cannot be used.
        OutputError: An artifact cannot be removed, or the SQLite file cannot be written anew.
    """
    if not studies or not _exists(config):
        return
    with opened(config, artifacts=True) as client:
        runs = _runs(client, studies)
        ids = [run.info.run_id for run in runs]
        forget_views(client, studies)
        _delete_versions(client, ids)
        places = {run.info.run_id: run.info.artifact_uri for run in runs}
        if is_server(client.tracking_uri):
            for run in runs:
                _delete_artifacts(run.info.run_id, run.info.artifact_uri, client.tracking_uri)
                if run.info.lifecycle_stage == "active":
                    client.delete_run(run.info.run_id)
            return
        # The rows go last, because they say where the artifacts are.
        for owner, place in (places | logged_models(client, ids)).items():
            _delete_artifacts(owner, place, client.tracking_uri)
        erase_runs(client, ids)
    if (file := sqlite_file(resolve(config.uri))) is not None:
        erase_deleted(file, SECONDS_TO_ERASE)


def _exists(config: TrackingConfig) -> bool:
    file = sqlite_file(resolve(config.uri))
    return file is None or is_made(file)


def _runs(client: Any, studies: Collection[str]) -> list[Any]:
    """The runs of the studies, then those that refer to them; as `mlflow.entities.Run`."""
    from mlflow.entities import ViewType

    experiments = [one.experiment_id for one in client.search_experiments(view_type=ViewType.ALL)]

    def tagged(tag: str, condition: str, values: Collection[str]) -> Iterator[Any]:
        runs = search(client, experiments, condition, ViewType.ALL)
        return (run for run in runs if run.data.tags.get(tag) in values)

    found = {run.info.run_id: run for name in studies for run in tagged(Tag.STUDY, clause(Tag.STUDY, name), {name})}
    if not found:
        return []
    for tag in REFERRING:
        found |= {run.info.run_id: run for run in tagged(tag, f"tags.`{tag}` LIKE '%'", set(found))}
    return list(found.values())


def _versions(client: Any, run_ids: list[str]) -> Iterator[Any]:
    """The versions of registered models that these runs made."""
    for start in range(0, len(run_ids), IDS_AT_ONCE):
        names = ", ".join(f"'{run_id}'" for run_id in run_ids[start : start + IDS_AT_ONCE])
        token = None
        while True:
            page = client.search_model_versions(f"run_id IN ({names})", page_token=token)
            yield from page
            token = page.token
            if not token:
                break


def _delete_versions(client: Any, run_ids: list[str]) -> None:
    versions = list(_versions(client, run_ids))
    for version in versions:
        if not is_server(client.tracking_uri):
            erase_version(client, version.name, version.version)
        client.delete_model_version(version.name, version.version)
    for name in {version.name for version in versions}:
        if not client.search_model_versions(f"name = '{name}'", max_results=1):
            client.delete_registered_model(name)


def _delete_artifacts(owner: str, place: str, store: str) -> None:
    """Delete the artifacts of a run or a logged model of a store, in whose folder they are."""
    folder = _folder(place)
    if folder is None:
        delete_artifacts(place, store)
    elif owner in folder.parts[-2:]:
        remove(folder.parent if folder.parent.name == owner else folder)
    else:
        # An experiment that somebody made may point anywhere.
        logger.warning("Artifacts in %s are not removed: the folder does not belong to one run", folder)


def _folder(place: str) -> Path | None:
    """The folder behind the address of artifacts; None if it is not on this machine."""
    parts = urlsplit(place)
    if parts.scheme not in ("", "file"):
        return None
    return local_path(parts.path) if parts.scheme else Path(place)
