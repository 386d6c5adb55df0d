"""Opening a tracking store. It is checked before a trial spends time, and every fault is one line.

MLflow is imported here, on first use, which takes a second or two. It reads its settings from the environment, so these
get a value before, unless the user has set one:

| variable | value | why |
|---|---|---|
| `MLFLOW_DISABLE_TELEMETRY` | `true` | lorahydra makes no call that the user did not ask for |
| `MLFLOW_MODEL_CATALOG_URI` | empty | the same: MLflow would look models up on a public host |
| `MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT` | `true` | the run's link is shown once, by the caller |
| `MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR` | `false` | progress is shown by the caller |
| `MLFLOW_HTTP_REQUEST_MAX_RETRIES` | `0` | the sending thread retries by itself; MLflow's 7 take minutes |
| `MLFLOW_HTTP_REQUEST_TIMEOUT` | `30` s | to notice a server that accepts connections and never answers |
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from lorahydra.config.schema import TrackingConfig
from lorahydra.errors import ConfigError, NotRecordedError, StoreUnavailableError, TrackingError, library_errors
from lorahydra.tracking.address import is_server, resolve
from lorahydra.tracking.compat import ask, mute
from lorahydra.tracking.database import prepare_database
from lorahydra.tracking.faults import store_fault
from lorahydra.utils.databases import local_path, shown, sqlite_file

__all__ = [
    "active_run",
    "connect",
    "experiment_of",
    "get_or_create_experiment",
    "opened",
    "quiet_environment",
    "talking_to",
    "talking_to_artifacts",
]

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_MODEL_CATALOG_URI": "",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
LONGEST_FOLDER = 120
"""Characters of an experiment's name in the address of its artifacts, of which MLflow's databases keep 256 in all."""
SECONDS_TO_ANSWER = 10
"""Longest wait for a server's first answer."""


def quiet_environment() -> None:
    """Give MLflow's settings their values, if the user has set none; to be called before MLflow is imported."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


@contextmanager
def talking_to(uri: str) -> Iterator[None]:
    """Keep MLflow's log quiet in this thread, and turn any failure of the store at `uri` into a `TrackingError`."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    with mute():
        try:
            yield
        except (MlflowException, SQLAlchemyError, OSError) as error:
            raise store_fault(f"the MLflow store {shown(uri)} cannot be used", error) from error


@contextmanager
def talking_to_artifacts(uri: str) -> Iterator[None]:
    """The same for a store's artifacts: the SDKs of their services raise errors that have no common class."""
    what = f"the artifacts of {shown(uri)} cannot be used"
    with library_errors(lambda error: store_fault(what, error)), talking_to(uri):
        yield


@contextmanager
def opened(config: TrackingConfig, run_id: str | None = None, *, artifacts: bool = False) -> Iterator[Any]:
    """An `mlflow.MlflowClient` of a store that exists already, for the calls in the block.

    Args:
        config: Its address.
        run_id: A run that it must have.
        artifacts: Whether the block reads or writes artifacts.

    Raises:
        ConfigError: `config.uri` is not the address of a store.
        NotRecordedError: The store does not have the run.
        TrackingError: The store cannot be reached, read or written, here or in the block.
    """
    uri = resolve(config.uri)
    client = connect(uri, create=False)
    if run_id is not None:
        active_run(client, run_id)
    with talking_to_artifacts(uri) if artifacts else talking_to(uri):
        yield client


def connect(uri: str, *, create: bool, writes: bool = False) -> Any:
    """An `mlflow.MlflowClient` of the store at a resolved address.

    Args:
        uri: Address of the store.
        create: Make a SQLite file that does not exist yet.
        writes: Refuse a database that can only be read.
    """
    quiet_environment()
    from mlflow import MlflowClient

    with talking_to(uri):
        if is_server(uri):
            _check_server(uri)
        else:
            prepare_database(uri, _artifact_root(uri) if create else None, writes=writes)
        return MlflowClient(uri)


def get_or_create_experiment(client: Any, name: str, artifact_location: str | None) -> Any:
    """The experiment `name`, an `mlflow.entities.Experiment`, made if there is none; `ConfigError` if it was deleted.

    Artifacts of a SQLite store go beside its file by default, in `mlartifacts/NAME`.
    """
    from mlflow.exceptions import MlflowException

    uri = client.tracking_uri
    with talking_to(uri):
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            try:
                client.create_experiment(name, artifact_location=_location(uri, name, artifact_location))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process was quicker
                    raise
            experiment = client.get_experiment_by_name(name)
    if experiment.lifecycle_stage != "active":
        raise ConfigError(
            f"tracking.experiment_name={name} was deleted from {shown(uri)}: choose another name, or restore "
            f"it with `mlflow experiments restore --experiment-id {experiment.experiment_id}`"
        )
    _check_artifacts(experiment.artifact_location, uri)
    return experiment


def experiment_of(client: Any, run_id: str) -> Any:
    """The experiment of a run, an `mlflow.entities.Experiment`, whose artifacts can be written from here."""
    info = active_run(client, run_id)
    with talking_to(client.tracking_uri):
        experiment = client.get_experiment(info.experiment_id)
    _check_artifacts(experiment.artifact_location, client.tracking_uri)
    return experiment


def _location(uri: str, name: str, given: str | None) -> str | None:
    if given is not None:
        is_path = "://" not in given and not given.startswith("file:")
        return Path(given).expanduser().absolute().as_uri() if is_path and not is_server(uri) else given
    if is_server(uri):
        return None
    folder = re.sub(r"[^\w.-]+", "-", name).strip(".-") or "experiment"
    if len(quote(folder)) > LONGEST_FOLDER:
        while len(quote(folder)) > LONGEST_FOLDER - 9:
            folder = folder[:-1]
        folder = f"{folder.strip('.-')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return (_artifact_root(uri) / folder).as_uri()


def _artifact_root(uri: str) -> Path:
    file = sqlite_file(uri)
    return (file.parent if file is not None else Path.cwd()) / "mlartifacts"


def _check_artifacts(location: str, uri: str) -> None:
    """Refuse a plain folder that this process, which writes the artifacts, cannot write."""
    parts = urlsplit(location)
    if parts.scheme not in ("", "file"):
        return
    folder = local_path(parts.path) if parts.scheme else Path(location)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK | os.X_OK)
    except OSError:
        writable = False
    if not writable:
        hint = "let the server take them (`mlflow server --serve-artifacts`)" if is_server(uri) else "choose another"
        raise TrackingError(
            f"the artifact folder {folder} of {shown(uri)} cannot be written from here: {hint}, with a new "
            "tracking.experiment_name, or change the permissions of the folder"
        )


def _check_server(uri: str) -> None:
    """Ask the server for something small, and do not wait for the answer as long as MLflow's client does."""
    response = ask(uri, "POST", "experiments/search", {"max_results": 1}, seconds=SECONDS_TO_ANSWER)
    status = response.status_code
    if "Invalid Host header" in response.text:
        raise TrackingError(
            f"the MLflow server {shown(uri)} refuses requests under that name: start it with "
            f"--allowed-hosts {urlsplit(uri).netloc.rpartition('@')[2]}"
        )
    if status in (401, 403):
        raise TrackingError(
            f"the MLflow server {shown(uri)} refuses access (HTTP {status}): set MLFLOW_TRACKING_USERNAME "
            "and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        )
    if status >= 500:
        raise StoreUnavailableError(f"the MLflow server {shown(uri)} failed (HTTP {status}): see its log")
    if not _is_json(response) and not (
        _is_unknown(response) and _is_json(ask(uri, "GET", "experiments/list", seconds=SECONDS_TO_ANSWER))
    ):
        raise TrackingError(f"{shown(uri)} answers, but not as an MLflow server (HTTP {status}): check tracking.uri")
    # MLflow's client asks for these whenever it lists a run's artifacts, which a study does in the end.
    models = {"experiment_ids": ["0"], "max_results": 1}
    if _is_unknown(ask(uri, "POST", "logged-models/search", models, seconds=SECONDS_TO_ANSWER)):
        raise TrackingError(
            f"the MLflow server {shown(uri)} is too old: upgrade it to MLflow 3 (stop it, take a copy of its "
            "database, `pip install -U mlflow`, `mlflow db upgrade`)"
        )


def _is_json(response: Any) -> bool:
    """Whether a request was granted, and by a server that speaks as MLflow does."""
    kind = str(response.headers.get("Content-Type", ""))
    return bool(response.status_code == 200) and kind.startswith("application/json")


def _is_unknown(response: Any) -> bool:
    """Whether the server does not know such requests; servers before 1.28 only list experiments."""
    return response.status_code in (404, 405) and "RESOURCE_DOES_NOT_EXIST" not in response.text


def active_run(client: Any, run_id: str, name: str = "") -> Any:
    """MLflow's information about a run, which must not have been deleted; `name` is for messages."""
    from mlflow.exceptions import MlflowException

    uri, which = client.tracking_uri, f"run {run_id} ({name})" if name else f"run {run_id}"
    with talking_to(uri):
        try:
            info = client.get_run(run_id).info
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise NotRecordedError(
                f"the MLflow store {shown(uri)} has no {which}: name its store with --uri"
            ) from error
    if info.lifecycle_stage != "active":
        raise NotRecordedError(
            f"{which} was deleted from {shown(uri)}: restore it with `mlflow runs restore --run-id {run_id}`"
        )
    return info
