"""The runs of a study: finding its parent run again, and closing nested runs that no process has ended."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lorahydra.config.schema import TrackingConfig
from lorahydra.names import PARENT_TAG, State, Tag
from lorahydra.tracking import operations
from lorahydra.tracking.address import resolve
from lorahydra.tracking.database import is_made
from lorahydra.tracking.patience import patient
from lorahydra.tracking.store import opened
from lorahydra.utils.databases import sqlite_file

__all__ = ["ChildRun", "clause", "close_run", "find_run", "search", "set_tags", "unfinished_children"]

OPEN = ("RUNNING", "SCHEDULED")
"""MLflow's statuses of a run that has not ended."""
PAGE = 500
"""Runs in one answer of the store."""


@dataclass(frozen=True)
class ChildRun:
    """A nested run."""

    run_id: str
    trial_number: int | None
    """None if the run does not say."""
    name: str


@patient
def find_run(config: TrackingConfig, tags: Mapping[str, str]) -> str | None:
    """Id of the run of the experiment that has all of these tags, the oldest if there are several.

    Deleted runs do not count. Makes neither an experiment nor a SQLite file.
    """
    file = sqlite_file(resolve(config.uri))
    if file is not None and not is_made(file):
        return None
    stored = operations.stored_tags(tags)
    with opened(config) as client:
        experiment = client.get_experiment_by_name(config.experiment_name)
        if experiment is None:
            return None
        for run in search(client, [experiment.experiment_id], " AND ".join(clause(*item) for item in stored.items())):
            if stored.items() <= run.data.tags.items():
                return str(run.info.run_id)
    return None


@patient
def unfinished_children(config: TrackingConfig, parent_run_id: str) -> list[ChildRun]:
    """Runs nested under a run that have not ended in the store, oldest first.

    Their processes may be alive, dead, or have ended without reaching the store.
    """
    nested = clause(PARENT_TAG, parent_run_id)
    with opened(config, parent_run_id) as client:
        experiment_id = client.get_run(parent_run_id).info.experiment_id
        runs = [
            run
            for status in OPEN
            for run in search(client, [experiment_id], f"{nested} AND attributes.status = '{status}'")
        ]
    return [_child(run) for run in sorted(runs, key=lambda run: run.info.start_time)]


@patient
def close_run(config: TrackingConfig, run_id: str, state: State, failure: str | None = None) -> None:
    """Record that a run, which no process records any more, ended in a state other than `RUNNING`.

    `failure` is the class and one line of its error, if it failed. Does nothing if that is recorded already. A run that
    has ended in another way keeps its end time.
    """
    with opened(config, run_id) as client:
        run = client.get_run(run_id)
        has_ended = run.info.status not in OPEN
        if has_ended and run.data.tags.get(Tag.STATE) == state:
            return
        for name, value in operations.end_tags(state, failure).items():
            client.set_tag(run_id, name, value)
        client.set_terminated(run_id, operations.STATUS[state], run.info.end_time if has_ended else None)


@patient
def set_tags(config: TrackingConfig, run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags of a run that is not being recorded."""
    with opened(config, run_id) as client:
        for name, value in tags.items():
            client.set_tag(run_id, name, value)


def search(client: Any, experiment_ids: list[str], condition: str, view: int | None = None) -> Iterator[Any]:
    """All runs of the experiments that meet the condition, oldest first, as `mlflow.entities.Run`.

    `view` is a value of `mlflow.entities.ViewType`; None leaves out deleted runs.
    """
    token = None
    while True:
        page = client.search_runs(
            experiment_ids,
            condition,
            **({} if view is None else {"run_view_type": view}),
            max_results=PAGE,
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        yield from page
        token = page.token
        if not token:
            return


def clause(name: str, value: str) -> str:
    """A condition that every run with this tag meets, and few others do.

    MLflow's filters have no escapes for quotes, so each character that could end or change a text matches any one.
    """
    pattern = re.sub(r"[^\w.:/@+=, -]", "_", value)
    return f"tags.`{name}` {'=' if pattern == value else 'LIKE'} '{pattern}'"


def _child(run: Any) -> ChildRun:
    number = run.data.tags.get(Tag.TRIAL_NUMBER, "")
    return ChildRun(run.info.run_id, int(number) if number.isdecimal() else None, run.info.run_name or "")
