"""Starting a run: the store is checked, the run made, and its queue opened."""

from __future__ import annotations

import contextlib
import getpass
import itertools
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorahydra.config.schema import TrackingConfig
from lorahydra.errors import TrackingError
from lorahydra.names import COMMIT_TAG, PARENT_TAG, Kind, State, Tag
from lorahydra.tracking import compat, operations
from lorahydra.tracking.address import resolve
from lorahydra.tracking.mirrors import check_mirrors
from lorahydra.tracking.patience import patiently
from lorahydra.tracking.run import Before, TrackedRun
from lorahydra.tracking.spool import Header, Spool
from lorahydra.tracking.store import active_run, connect, experiment_of, get_or_create_experiment, opened, talking_to
from lorahydra.tracking.views import furnish, furnish_study
from lorahydra.utils.environment import git

__all__ = ["add_to_run", "check_store", "join_run", "reopen_run", "start_run"]

NAME_LENGTH = 250
"""Characters of a run's name that MLflow's databases keep."""


def check_store(config: TrackingConfig, *, waits: bool = False) -> None:
    """Find out that a run could be started, before expensive work begins.

    Makes the experiment, and the file of a SQLite store, if they do not exist yet. A wrong address is reported at once,
    within about 15 seconds; with `waits` the store was used before, and the check waits `config.retry_seconds` for it.

    Raises:
        ConfigError: A mirror is not known, or its library is not installed.
    """
    check_mirrors(config.mirrors)
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
        run_name: Name shown in MLflow, which keeps 250 characters of it.
        tags: More tags.
        parent_run_id: Run that this one is nested under.

    Raises:
        ConfigError: The experiment was deleted, or `config.uri` is not the address of a store.
        OutputError: `output_dir` cannot be written.
    """
    # An attempt whose answer was lost may have made the run: the time by which the next one finds it is drawn once.
    started, attempts = operations.now(), itertools.count()
    given = (output_dir, kind, run_name, tags or {}, parent_run_id, started)
    return patiently(config, lambda: _start(config, *given, is_first=next(attempts) == 0))


def _start(
    config: TrackingConfig,
    output_dir: Path,
    kind: Kind,
    run_name: str,
    tags: Mapping[str, str],
    parent_run_id: str | None,
    started: int,
    *,
    is_first: bool,
) -> TrackedRun:
    named = {name: str(value) for name, value in config.tags.items()}
    own_tags = named | {Tag.KIND: kind, Tag.STATE: State.RUNNING} | dict(tags)
    if config.run_id is not None and parent_run_id is None:
        return _adopt_run(config, config.run_id, output_dir, run_name, own_tags)
    all_tags = _source_tags() | own_tags | ({} if parent_run_id is None else {PARENT_TAG: parent_run_id})
    uri, client, experiment_id = _open_experiment(config)
    spool = Spool.create(output_dir.absolute())
    run = None
    try:
        new = (experiment_id, started, operations.stored_tags(all_tags), run_name[:NAME_LENGTH])
        with talking_to(uri):
            run = client.create_run(*new) if is_first else _create_again(client, *new)
        study = own_tags.get(Tag.STUDY)
        # The run of a study is recorded by several processes, and what it says is about the trials.
        mirrors = [] if kind is Kind.STUDY else config.mirrors
        header = Header(uri, run.info.run_id, run_name, started, mirrors=mirrors, study=study)
        spool.write_header(header)
    except BaseException:
        spool.remove()
        if run is not None:  # nothing will ever be logged to it
            with contextlib.suppress(TrackingError), talking_to(uri):
                client.delete_run(run.info.run_id)
        raise
    if kind is Kind.STUDY:
        furnish_study(client, experiment_id, own_tags.get(Tag.STUDY, run_name), named.get(Tag.FINE_TUNE))
    return TrackedRun(client, spool, header, experiment_id=experiment_id, config=config)


def _create_again(client: Any, experiment_id: str, started: int, tags: Mapping[str, str], name: str) -> Any:
    """The run that an earlier attempt may have made; the server may also have made it twice, or make it just now."""

    def made() -> list[Any]:
        found = client.search_runs([experiment_id], f"attributes.start_time = {started}")
        return [run for run in found if run.info.run_name == name and tags.items() <= run.data.tags.items()]

    run, *twins = made() or [client.create_run(experiment_id, started, tags, name), *made()]
    for twin in twins:
        if twin.info.run_id != run.info.run_id:
            client.delete_run(twin.info.run_id)
    return run


def _source_tags() -> dict[str, str]:
    """MLflow's tags for who started a run, with which program, and from which commit of a Git repository."""
    program = sys.argv[0] if sys.argv and sys.argv[0] not in ("", "-c") else sys.executable
    tags = {"mlflow.source.name": program, "mlflow.source.type": "LOCAL"}
    with contextlib.suppress(OSError, KeyError):  # a container's user may have no name
        tags["mlflow.user"] = getpass.getuser()
    if commit := git("rev-parse", "--verify", "--quiet", "HEAD"):
        tags[COMMIT_TAG] = commit
    return tags


def _adopt_run(
    config: TrackingConfig, run_id: str, output_dir: Path, run_name: str, tags: Mapping[str, str]
) -> TrackedRun:
    """Record to the run that MLflow has opened."""
    with opened(config, run_id) as client:
        client.update_run(run_id, name=run_name)
        for key, value in operations.stored_tags(tags).items():
            client.set_tag(run_id, key, value)
        if tags[Tag.KIND] == Kind.STUDY:
            experiment_id = client.get_run(run_id).info.experiment_id
            furnish_study(client, experiment_id, tags.get(Tag.STUDY, run_name), tags.get(Tag.FINE_TUNE))
    return reopen_run(config, output_dir=output_dir, run_id=run_id)


def join_run(config: TrackingConfig, *, output_dir: Path, run_id: str) -> TrackedRun:
    """Record a run that other processes may be recording at the same time, or that has ended.

    The run is open from now on, whatever it was before, and its failure is removed. Each process has its own queue in
    its `output_dir` and ends with `leave`, the last one with `finish`. System metrics are not sampled. The first value
    of a param stays, whoever gave it.
    """
    return reopen_run(replace(config, system_metrics=False, mirrors=[]), output_dir=output_dir, run_id=run_id)


def reopen_run(config: TrackingConfig, *, output_dir: Path, run_id: str) -> TrackedRun:
    """Go on with a run that has ended; `before` of the result says how it ended.

    What failed is done again, and the run no longer says so. The time since it ended does not count as a part of its
    duration.
    """
    return _go_on(config, output_dir, run_id, opens=True)


def add_to_run(config: TrackingConfig, *, output_dir: Path, run_id: str) -> TrackedRun:
    """Add to what a run that has ended recorded; its state and its end stay. `before` of the result is what it was."""
    return _go_on(replace(config, system_metrics=False, mirrors=[]), output_dir, run_id, opens=False)


def _go_on(config: TrackingConfig, output_dir: Path, run_id: str, *, opens: bool) -> TrackedRun:
    uri = resolve(config.uri)
    # What the run was before is read once: an attempt to open it may fail halfway, and be repeated.
    client, info, data = patiently(config, lambda: _read(uri, run_id))
    now = operations.now()
    pause = max(0, now - info.end_time) if info.end_time else 0
    spool = Spool.create(output_dir.absolute())
    try:
        mirrors = [] if data.tags.get(Tag.KIND) == Kind.STUDY else config.mirrors
        header = Header(uri, run_id, info.run_name, now, pause, mirrors, data.tags.get(Tag.STUDY))
        spool.write_header(header)
        if opens:
            patiently(config, lambda: _open_again(client, uri, run_id, Tag.FAILURE in data.tags))
    except BaseException:
        spool.remove()
        raise
    before = Before(_state(data.tags.get(Tag.STATE)), dict(data.metrics), dict(data.params), dict(data.tags))
    experiment = info.experiment_id
    return TrackedRun(client, spool, header, experiment_id=experiment, config=config, before=before, is_open=opens)


def _read(uri: str, run_id: str) -> tuple[Any, Any, Any]:
    """A client, and MLflow's information and data of a run."""
    client = connect(uri, create=False)
    info = active_run(client, run_id)
    with talking_to(uri):
        return client, info, client.get_run(run_id).data


def _open_again(client: Any, uri: str, run_id: str, forget_failure: bool) -> None:
    from mlflow.exceptions import MlflowException

    with talking_to(uri):
        compat.open_run(client, run_id)
        client.set_tag(run_id, Tag.STATE, State.RUNNING)
        if forget_failure:
            try:
                client.delete_tag(run_id, Tag.FAILURE)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # another process was quicker
                    raise


def _state(tag: str | None) -> State:
    """The state in a run's tag; interrupted if its process could not set one."""
    return State(tag) if tag in {State.COMPLETE, State.PRUNED, State.FAILED} else State.INTERRUPTED
