"""The winner's adapter in MLflow's model registry."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from lorahydra.config.schema import TrackingConfig
from lorahydra.errors import TrackingError, library_errors
from lorahydra.names import ADAPTER_DIR, CHAMPION
from lorahydra.tracking.address import resolve
from lorahydra.tracking.compat import join_address
from lorahydra.tracking.faults import store_fault
from lorahydra.tracking.patience import patient
from lorahydra.tracking.store import active_run, connect, talking_to
from lorahydra.utils.databases import shown

__all__ = ["register_model", "registered_name"]

NAME_LENGTH = 200
"""MLflow's databases keep 256 characters."""


def registered_name(name: str) -> str:
    """The name itself where MLflow takes it and it can stand in `models:/NAME@ALIAS`, else one that is made of it.

    What is made ends with a digest, so that two names never are one model.
    """
    clean = re.sub(r"[^\w.+-]+", "-", name).strip(".-")[: NAME_LENGTH - 9]
    if name and clean == name:
        return name
    return f"{clean or 'model'}-{hashlib.sha256(name.encode('utf-8', 'replace')).hexdigest()[:8]}"


@patient
def register_model(
    config: TrackingConfig,
    run_id: str,
    name: str,
    *,
    artifact: str = ADAPTER_DIR,
    alias: str = CHAMPION,
    description: str = "",
    tags: Mapping[str, str],
) -> str:
    """Make a run's adapter a version of a registered model and give it the alias.

    `mlflow.artifacts.download_artifacts("models:/NAME@ALIAS")` brings its files. A run has one version of a
    model: when there is one already, it only gets the alias.

    Args:
        config: The run's store.
        run_id: The run.
        name: The registered model, made if there is none; changed to `registered_name(name)`.
        artifact: The run's artifact folder.
        alias: Letters, digits, `_` and `-`; moved to this version.
        description: Of a new version, in Markdown.
        tags: Of a new version.

    Returns:
        The version.

    Raises:
        ConfigError: The address cannot be.
        TrackingError: The store cannot be reached or written, or does not have the run or its artifact.
    """
    uri = resolve(config.uri)
    client = connect(uri, create=False)
    info = active_run(client, uri, run_id)
    name = registered_name(name)
    with talking_to(uri):
        _make_model(client, uri, name)
        version = _version_of(client, name, run_id)
    if version is None:
        _check_artifact(client, uri, run_id, artifact)
        with talking_to(uri):
            version = _make_version(client, name, info, artifact, description, tags)
    with talking_to(uri):
        client.set_registered_model_alias(name, alias, version)
    return version


def _make_model(client: Any, uri: str, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        if "taken by a prompt" in str(error):
            raise TrackingError(
                f"the name {name} is taken by a prompt in {shown(uri)}: choose another name for the model"
            ) from error


def _version_of(client: Any, name: str, run_id: str) -> str | None:
    found = client.search_model_versions(f"name = '{name}' AND run_id = '{run_id}'")
    return max((str(version.version) for version in found), key=int, default=None)


def _make_version(client: Any, name: str, info: Any, artifact: str, description: str, tags: Mapping[str, str]) -> str:
    # Not `runs:/…`: a server that shows the version's files would look that run up in a store of its own.
    source = join_address(info.artifact_uri, artifact)
    made = client.create_model_version(
        name, source, info.run_id, tags=dict(tags), description=description or None, await_creation_for=0
    )
    return str(made.version)


def _check_artifact(client: Any, uri: str, run_id: str, artifact: str) -> None:
    """A version without files would only be noticed by whoever needs it."""
    # Artifact stores raise errors of their own SDKs, which have no common class.
    what = f"the artifacts of {shown(uri)} cannot be read"
    with library_errors(lambda error: store_fault(what, error)), talking_to(uri):
        files = client.list_artifacts(run_id, artifact)
    if not files:
        raise TrackingError(
            f"run {run_id} has no artifact folder {artifact} in {shown(uri)}; if it was not sent yet, run "
            "`lorahydra sync` on its output folder"
        )
