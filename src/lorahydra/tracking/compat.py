"""Parts of MLflow that are private or outside its documented API, each with the reason why nothing public does.

No other module imports them. `tests/tracking/test_compat.py` says what is relied on; `make upgrade-check` runs it with
the newest versions that pyproject.toml allows. MLflow is imported on first use, see `tracking/store.py`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorahydra.tracking.address import is_server

if TYPE_CHECKING:
    from alembic.script import ScriptDirectory

__all__ = [
    "ask",
    "delete_artifacts",
    "erase_runs",
    "erase_version",
    "join_address",
    "logged_models",
    "make_tables",
    "migrations",
    "mute",
    "open_run",
    "store_trace",
    "system_monitors",
]

SECONDS = 10
"""Longest wait for a server's version."""
AT_ONCE = 100
"""Ids in one question to a database."""


def mute() -> AbstractContextManager[None]:
    """Keep MLflow's log quiet in this thread: it writes a stack trace for each fault of a database.

    Its loggers are shared by all threads, so their public level cannot be set for one.
    """
    from mlflow.utils.logging_utils import suppress_logs_in_thread

    return suppress_logs_in_thread()  # type: ignore[no-any-return]


def ask(uri: str, method: str, path: str, body: dict[str, Any] | None = None, *, seconds: float) -> Any:
    """Send a server one request with MLflow's credentials; returns the `requests.Response`, of any status.

    The path is one of its API for runs, unless it begins with `/`.
    MLflow's public client always waits for `MLFLOW_HTTP_REQUEST_TIMEOUT`, and hides answers that are not MLflow's.
    """
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    return http_request(
        get_default_host_creds(uri),
        path if path.startswith("/") else f"/api/2.0/mlflow/{path}",
        method,
        **({} if body is None else {"json": body}),
        max_retries=0,
        timeout=seconds,
        raise_on_status=False,
    )


def make_tables(uri: str, artifact_root: Path) -> Any:
    """MLflow's store on a database, with its tables made if there are none.

    `MlflowClient` makes them as well, but keeps its connections for the rest of the process.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    return SqlAlchemyStore(uri, str(artifact_root))


def migrations() -> ScriptDirectory:
    """The versions that MLflow's tables have had; `mlflow db upgrade` changes them without saying which there are."""
    import mlflow
    from alembic.script import ScriptDirectory

    return ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations"))


def open_run(client: Any, run_id: str) -> None:
    """Make a run that has ended a running one, without an end; `MlflowClient.update_run` keeps its end time."""
    from mlflow.entities import RunStatus

    store = client._tracking_client.store
    store.update_run_info(run_id, RunStatus.from_string("RUNNING"), end_time=0, run_name=None)


def join_address(root: str, name: str) -> str:
    """The address of an artifact under that of its run, which may end with a query."""
    from mlflow.utils.uri import append_to_uri_path

    return str(append_to_uri_path(root, name))


def store_trace(uri: str, experiment_id: str, spans: list[Any], info: Any) -> None:
    """Store a trace that is complete; MLflow's public tracing sends in the background and drops what fails."""
    from mlflow.tracing.client import TracingClient

    client = TracingClient(uri)
    try:
        client.log_spans(experiment_id, spans)
    except NotImplementedError:
        if not _tells_version(uri):
            raise
        client.log_spans(experiment_id, spans)
    client.start_trace(info)


def _tells_version(uri: str) -> bool:
    """Whether a server answers when it is asked for its version.

    MLflow's client takes a server that does not answer for one that is too old for traces, and never asks again.
    """
    from mlflow.store.tracking.rest_store import RestStore

    if not is_server(uri):
        return False
    RestStore._get_server_version.cache_clear()
    response = ask(uri, "GET", "/version", seconds=SECONDS)
    if response.status_code >= 500:
        response.raise_for_status()
    return bool(response.status_code == 200)


def system_monitors() -> list[type[Any]]:
    """MLflow's samplers of CPU, memory, disk, network and GPU; it starts them itself only for its own fluent runs."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
    from mlflow.system_metrics.metrics.rocm_monitor import ROCMMonitor

    return [CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor, ROCMMonitor]


def delete_artifacts(uri: str, store: str) -> None:
    """Delete all artifacts at an address of any kind in a store; `MlflowClient` can only list, read and write them."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    get_artifact_repository(uri, tracking_uri=store).delete_artifacts()


def logged_models(client: Any, run_ids: list[str]) -> dict[str, str]:
    """Models in a database that these runs logged: the address of the files by the id; none are left out, as deleted.

    `MlflowClient.search_logged_models` does not find those that were deleted in the UI.
    """
    from mlflow.store.tracking.dbmodels.models import SqlLoggedModel

    with client._tracking_client.store.ManagedSessionMaker() as session:
        query = session.query(SqlLoggedModel.model_id, SqlLoggedModel.artifact_location)
        rows = query.filter(SqlLoggedModel.source_run_id.in_(run_ids)).all()
        return {model_id: location for model_id, location in rows}


def erase_version(client: Any, name: str, version: str) -> None:
    """Leave the number of a registered version in a database, but nothing else that its deletion would leave there.

    `MlflowClient.delete_model_version` keeps where its files are, and its tags.
    """
    from mlflow.store.model_registry.dbmodels import models

    with client._get_registry_client().store.ManagedSessionMaker(read_only=False) as session:
        same = {"name": name, "version": int(version)}
        session.query(models.SqlModelVersionTag).filter_by(**same).delete()
        session.query(models.SqlModelVersion).filter_by(**same).update({"storage_location": None})


def erase_runs(client: Any, run_ids: list[str]) -> None:
    """Delete runs, their traces, logged models and dataset inputs from a database.

    `MlflowClient.delete_run` only marks a run, and `mlflow gc` leaves the datasets of runs and their traces.
    """
    from mlflow.store.tracking.dbmodels import models

    store = client._tracking_client.store
    inputs, datasets, traces = models.SqlInput, models.SqlDataset, models.SqlTraceMetadata
    with store.ManagedSessionMaker() as session:
        owned = traces.key == "mlflow.sourceRun", traces.value.in_(run_ids)
        of_runs = session.query(traces.request_id).filter(*owned)
        info = models.SqlTraceInfo
        found = session.query(info.experiment_id, info.request_id).filter(info.request_id.in_(of_runs)).all()
    for experiment in {experiment for experiment, _ in found}:
        of_experiment = [request for other, request in found if other == experiment]
        for start in range(0, len(of_experiment), AT_ONCE):
            store.delete_traces(str(experiment), trace_ids=of_experiment[start : start + AT_ONCE])
    for model_id in logged_models(client, run_ids):
        store._hard_delete_logged_model(model_id)
    with store.ManagedSessionMaker(read_only=False) as session:
        used = session.query(inputs).filter(inputs.destination_id.in_(run_ids) | inputs.source_id.in_(run_ids))
        sources = {row.source_id for row in used}
        names = [row.input_uuid for row in used]
        session.query(models.SqlInputTag).filter(models.SqlInputTag.input_uuid.in_(names)).delete()
        used.delete()
        kept = {row[0] for row in session.query(inputs.source_id).filter(inputs.source_id.in_(sources))}
        session.query(datasets).filter(datasets.dataset_uuid.in_(sources - kept)).delete()
    for run_id in run_ids:
        store._hard_delete_run(run_id)
