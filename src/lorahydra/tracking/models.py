"""Adapters in MLflow's model registry."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lorahydra.config.schema import TrackingConfig
from lorahydra.errors import TrackingError
from lorahydra.names import ADAPTER_DIR, CHAMPION
from lorahydra.tracking.compat import join_address
from lorahydra.tracking.patience import patient
from lorahydra.tracking.store import opened, talking_to_artifacts
from lorahydra.utils.databases import shown

__all__ = ["RegisteredVersion", "find_version", "register_model", "registered_name"]

NAME_LENGTH = 200
"""MLflow's databases keep 256 characters."""
UNKNOWN = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""MLflow's codes if a model, alias or version does not exist, or its name is not valid."""


@dataclass(frozen=True)
class RegisteredVersion:
    """A version of a registered model."""

    name: str
    version: str
    run_id: str | None
    """The run that made it; None if it was registered without one."""


def find_version(
    config: TrackingConfig, name: str, *, alias: str = CHAMPION, version: str | None = None
) -> RegisteredVersion | None:
    """A version of a registered model by its number or else its alias; None if there is none."""
    from mlflow.exceptions import MlflowException

    with opened(config) as client:
        try:
            if version is None:
                stored = client.get_model_version_by_alias(name, alias)
            else:
                stored = client.get_model_version(name, version)
        except MlflowException as error:
            if error.error_code not in UNKNOWN:
                raise
            return None
    return RegisteredVersion(name, str(stored.version), stored.run_id or None)


def registered_name(name: str) -> str:
    """The name if MLflow accepts it and `models:/NAME@ALIAS` can hold it, else one that is made from it.

    A name that is made ends with a digest, so that two names never become one model.
    """
    clean = re.sub(r"[^\w.+-]+", "-", name).strip(".-")[: NAME_LENGTH - 9]
    if name and clean == name:
        return name
    return f"{clean or 'model'}-{hashlib.sha256(name.encode('utf-8', 'replace')).hexdigest()[:8]}"


@patient
def register_model(
    config: TrackingConfig, run_id: str, name: str, *, description: str = "", tags: Mapping[str, str]
) -> str:
    """Make a run's adapter a version of a registered model and give it the alias `champion`.

    `mlflow.artifacts.download_artifacts("models:/NAME@champion")` brings its files. A run has one version of a
    model: when there is one already, it only gets the alias.

    Args:
        config: The run's store.
        run_id: The run.
        name: The registered model, made if there is none; changed to `registered_name(name)`.
        description: Of a new version, in Markdown.
        tags: Of a new version.

    Returns:
        The version.

    Raises:
        TrackingError: The store cannot be used, or does not have the run or its adapter.
    """
    name = registered_name(name)
    with opened(config, run_id) as client:
        _make_model(client, name)
        version = _version_of(client, name, run_id)
        if version is None:
            _check_adapter(client, run_id)
            # Not `runs:/…`: a server that shows the version's files would look for that run in its own store.
            source = join_address(client.get_run(run_id).info.artifact_uri, ADAPTER_DIR)
            made = client.create_model_version(
                name, source, run_id, tags=dict(tags), description=description or None, await_creation_for=0
            )
            version = str(made.version)
        client.set_registered_model_alias(name, CHAMPION, version)
    return version


def _make_model(client: Any, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        if "taken by a prompt" in str(error):
            store = shown(client.tracking_uri)
            raise TrackingError(
                f"the name {name} is taken by a prompt in {store}: choose another name for the model"
            ) from error


def _version_of(client: Any, name: str, run_id: str) -> str | None:
    versions = client.search_model_versions(f"name = '{name}' AND run_id = '{run_id}'")
    return max((str(version.version) for version in versions), key=int, default=None)


def _check_adapter(client: Any, run_id: str) -> None:
    """Refuse to make a version without files: only whoever needs them would notice."""
    uri = client.tracking_uri
    with talking_to_artifacts(uri):
        files = client.list_artifacts(run_id, ADAPTER_DIR)
    if not files:
        raise TrackingError(
            f"run {run_id} has no artifact folder {ADAPTER_DIR} in {shown(uri)}; if it was not sent yet, run "
            "`lorahydra sync` on its output folder"
        )
