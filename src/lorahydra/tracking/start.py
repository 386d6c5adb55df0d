"""Starting a run: the store is checked, the run made, and its queue opened."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorahydra.config.schema import TrackingConfig
from lorahydra.errors import TrackingError
from lorahydra.names import Kind, State, Tag
from lorahydra.tracking import compat, operations
from lorahydra.tracking.address import resolve
from lorahydra.tracking.patience import patient, patiently
from lorahydra.tracking.run import Before, TrackedRun
from lorahydra.tracking.source import source_tags
from lorahydra.tracking.spool import Header, Spool
from lorahydra.tracking.store import active_run, connect, experiment_of, get_or_create_experiment, opened, talking_to
from lorahydra.tracking.views import furnish

__all__ = ["check_store", "join_run", "reopen_run", "start_run"]


NAME_LENGTH = 250


def check_store(config: TrackingConfig, *, waits: bool = False) -> None:
    """Find out that a run could be started, before expensive work begins.

    Makes the experiment, and the file of a SQLite store, where they do not exist yet.

    Args:
        config: Store and experiment.
        waits: The store was used before: wait `config.retry_seconds` where it cannot be reached. Without this, a
            wrong address is reported at once.

    Raises:
        ConfigError: `config.uri` is not the address of a store, or the experiment was deleted.
        TrackingError: The store cannot be reached, read or written (within about 15 seconds, but for the waiting).
    """
    if waits:
        patiently(config, lambda: _open_experiment(config))
    else:
        _open_experiment(config)


def _open_experiment(config: TrackingConfig) -> tuple[str, Any, str]:
    """Address and client of the store, and the experiment's id."""
    uri = resolve(config.uri)
    client = connect(uri, create=config.run_id is None, writes=True)
    if config.run_id is not None:
        experiment = experiment_of(client, config.run_id)
    else:
        experiment = get_or_create_experiment(client, config.experiment_name, config.artifact_location)
    furnish(client, experiment)
    return uri, client, experiment.experiment_id


@patient
def start_run(
    config: TrackingConfig,
    *,
    output_dir: Path,
    kind: Kind,
    run_name: str,
    tags: Mapping[str, str] | None = None,
    parent_run_id: str | None = None,
) -> TrackedRun:
    """Check the store and make a run in it.

    With `config.run_id`, no run is made unless it is nested: that run, which MLflow made, is given the name and the
    tags. MLflow's global state (active run, tracking address) is neither used nor changed, and `MLFLOW_RUN_ID` has
    no effect by itself.

    Args:
        config: Store and experiment.
        output_dir: The trial's folder; what is not sent yet waits in its `tracking` folder.
        kind: What the run records.
        run_name: Name shown in MLflow; cut to the 250 characters that its databases keep.
        tags: More tags.
        parent_run_id: Run that this one is nested under.

    Raises:
        ConfigError: `config.uri` is not the address of a store, or the experiment was deleted.
        TrackingError: The store cannot be reached, read or written, and has not come back in `config.retry_seconds`.
        OutputError: `output_dir` cannot be written.
    """
    own_tags = {Tag.KIND: kind, Tag.STATE: State.RUNNING} | dict(tags or {})
    if config.run_id is not None and parent_run_id is None:
        return _adopt_run(config, output_dir, run_name, own_tags)
    all_tags = source_tags() | own_tags
    if parent_run_id is not None:
        all_tags["mlflow.parentRunId"] = parent_run_id
    uri, client, experiment_id = _open_experiment(config)
    spool = Spool.create(output_dir.absolute())
    run = None
    try:
        started = operations.now()
        sent_at_once = {key: value for chunk in operations.tags(all_tags) for key, value in chunk["values"].items()}
        with talking_to(uri):
            run = client.create_run(experiment_id, started, sent_at_once, run_name[:NAME_LENGTH])
        header = Header(uri, run.info.run_id, run_name, started)
        spool.write_header(header)
    except BaseException:
        spool.remove()
        if run is not None:  # nothing will ever be logged to it
            with contextlib.suppress(TrackingError), talking_to(uri):
                client.delete_run(run.info.run_id)
        raise
    return TrackedRun(client, spool, header, experiment_id=experiment_id, config=config)


def _adopt_run(config: TrackingConfig, output_dir: Path, run_name: str, tags: Mapping[str, str]) -> TrackedRun:
    """Record to the run that MLflow has opened."""
    assert config.run_id is not None
    with opened(config, config.run_id) as client:
        client.update_run(config.run_id, name=run_name)
        for key, value in tags.items():
            client.set_tag(config.run_id, key, value)
    return _record_again(config, output_dir, config.run_id, forget_failure=True)


def reopen_run(config: TrackingConfig, *, output_dir: Path, run_id: str, forget_failure: bool) -> TrackedRun:
    """Go on recording a run that has ended; `before` of the result says how it ended.

    Args:
        config: Its store.
        output_dir: The trial's folder.
        run_id: The run.
        forget_failure: What failed is done again.

    Raises:
        ConfigError: `config.uri` is not the address of a store.
        TrackingError: The store cannot be reached, or does not have the run.
        OutputError: `output_dir` cannot be written.
    """
    return _record_again(config, output_dir, run_id, forget_failure=forget_failure)


def join_run(config: TrackingConfig, *, output_dir: Path, run_id: str) -> TrackedRun:
    """Record a run that other processes may be recording at the same time, or that has ended.

    The run is open from now on, whatever it was before, and its failure is removed. Each process has its own queue in
    its `output_dir` and ends with `leave`, the last one with `finish`. System metrics are not sampled. The first value
    of a param stays, whoever gave it.

    Args:
        config: Its store.
        output_dir: Where this process keeps what it has not sent.
        run_id: The run.

    Raises:
        ConfigError: `config.uri` is not the address of a store.
        TrackingError: The store cannot be reached, or does not have the run.
        OutputError: `output_dir` cannot be written.
    """
    return _record_again(replace(config, system_metrics=False), output_dir, run_id, forget_failure=True)


def _record_again(config: TrackingConfig, output_dir: Path, run_id: str, *, forget_failure: bool) -> TrackedRun:
    uri = resolve(config.uri)
    # What the run was before is read once: an attempt to open it may fail halfway, and be repeated.
    client, info, data = patiently(config, lambda: _read(uri, run_id))
    spool = Spool.create(output_dir.absolute())
    try:
        header = Header(uri, run_id, info.run_name, operations.now())
        spool.write_header(header)
        patiently(config, lambda: _open_again(client, uri, run_id, forget_failure and Tag.FAILURE in data.tags))
    except BaseException:
        spool.remove()
        raise
    run = TrackedRun(client, spool, header, experiment_id=info.experiment_id, config=config)
    run.before = Before(_state(data.tags.get(Tag.STATE)), dict(data.metrics), dict(data.params))
    return run


def _read(uri: str, run_id: str) -> tuple[Any, Any, Any]:
    """A client, and MLflow's information and data of a run."""
    client = connect(uri, create=False)
    info = active_run(client, run_id)
    with talking_to(uri):
        return client, info, client.get_run(run_id).data


def _open_again(client: Any, uri: str, run_id: str, forget_failure: bool) -> None:
    with talking_to(uri):
        compat.open_run(client, run_id)
        client.set_tag(run_id, Tag.STATE, State.RUNNING)
        if forget_failure:
            _delete_tag(client, run_id, Tag.FAILURE)


def _delete_tag(client: Any, run_id: str, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.delete_tag(run_id, name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # another process was quicker
            raise


def _state(tag: str | None) -> State:
    """The state in a run's tag; interrupted where its process could not set one."""
    return State(tag) if tag in {State.COMPLETE, State.PRUNED, State.FAILED} else State.INTERRUPTED
