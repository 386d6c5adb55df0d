"""Parts of MLflow that are private or outside its documented API, each with the reason why nothing public does.

No other module imports them. `tests/tracking/test_compat.py` says what is relied on; `make upgrade-check` runs it with
the newest versions that pyproject.toml allows. MLflow is imported on first use, see `tracking/store.py`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alembic.script import ScriptDirectory

__all__ = ["ask", "join_address", "make_tables", "migrations", "mute", "open_run", "store_trace", "system_monitors"]


def mute() -> AbstractContextManager[None]:
    """Keep MLflow's log quiet in this thread: it writes a stack trace for each fault of a database.

    Its loggers are shared by all threads, so their public level cannot be set for one.
    """
    from mlflow.utils.logging_utils import suppress_logs_in_thread

    return suppress_logs_in_thread()  # type: ignore[no-any-return]


def ask(uri: str, method: str, path: str, body: dict[str, Any] | None = None, *, seconds: float) -> Any:
    """Send a server one request with MLflow's credentials; returns the `requests.Response`, of any status.

    MLflow's public client always waits for `MLFLOW_HTTP_REQUEST_TIMEOUT`, and hides answers that are not MLflow's.
    """
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    return http_request(
        get_default_host_creds(uri),
        f"/api/2.0/mlflow/{path}",
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
    client.log_spans(experiment_id, spans)
    client.start_trace(info)


def system_monitors() -> list[type[Any]]:
    """MLflow's samplers of CPU, memory, disk, network and GPU; it starts them itself only for its own fluent runs."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
    from mlflow.system_metrics.metrics.rocm_monitor import ROCMMonitor

    return [CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor, ROCMMonitor]
