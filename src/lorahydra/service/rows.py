"""Rows of the database, found and shown: from tables to the values that the API and the page tell."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from lorahydra.service.database import Dataset, Job, Project
from lorahydra.service.errors import NotFoundError
from lorahydra.service.results import Stores
from lorahydra.service.supervisor import ACTIVE, job_study
from lorahydra.service.views import ENDED, DatasetView, FineTuneParams, JobState, JobView, MlflowLinks, ProjectView
from lorahydra.utils.databases import shown

__all__ = ["DEMO_NAME", "MOST", "dataset_view", "found", "job_views", "part", "project_views"]

DEMO_NAME = "demo"
"""Stands for the dataset of jobs that have none of their own."""
MOST = 200
"""Entries that can be asked for at a time."""
Row = TypeVar("Row", Project, Dataset, Job)


def found(session: Session, table: type[Row], number: int, what: str) -> Row:
    """The row with a number.

    Raises:
        NotFoundError: There is none.
    """
    row = session.get(table, number)
    if row is None:
        raise NotFoundError(f"there is no {what} {number}", f"{what.replace('-', '_')}_not_found")
    return row


def part(session: Session, table: type[Row], where: Any, limit: int, offset: int) -> tuple[list[Row], int]:
    """Rows of a page, the newest first, and how many there are in all."""
    rows, count = select(table), select(func.count()).select_from(table)
    if where is not None:
        rows, count = rows.where(where), count.where(where)
    limit, offset = max(1, min(limit, MOST)), max(0, offset)
    found = session.scalars(rows.order_by(table.id.desc()).limit(limit).offset(offset)).all()
    return list(found), session.scalar(count) or 0


def project_views(session: Session, rows: Sequence[Project]) -> list[ProjectView]:
    """Projects with what they have, with two queries however many they are."""
    numbers = [row.id for row in rows]
    datasets, jobs = _counts(session, Dataset.project_id, numbers), _counts(session, Job.project_id, numbers)
    return [
        ProjectView(row.id, row.name, _time(row.created), datasets.get(row.id, 0), jobs.get(row.id, 0)) for row in rows
    ]


def _counts(session: Session, project: Any, numbers: Sequence[int]) -> dict[int, int]:
    """How many rows of a table each project has; `project` is the column that says whose a row is."""
    found = session.execute(select(project, func.count()).where(project.in_(numbers)).group_by(project))
    return {number: count for number, count in found}


def dataset_view(row: Dataset) -> DatasetView:
    """A dataset with its report."""
    return DatasetView(
        id=row.id,
        project=row.project_id,
        name=row.name,
        size=row.size,
        rows=row.rows,
        format=row.format,
        created=_time(row.created),
        report=row.report,
    )


def job_views(session: Session, jobs: Sequence[Job], folder: Path, stores: Stores) -> list[JobView]:
    """Fine-tunes as they are now, with three queries however many they are.

    Args:
        session: Where the rows are from.
        jobs: The rows.
        folder: Of all jobs.
        stores: What they record to.
    """
    projects = _names(session, Project, {job.project_id for job in jobs})
    datasets = _names(session, Dataset, {job.dataset_id for job in jobs if job.dataset_id is not None})
    places = _places(session) if any(job.state == JobState.QUEUED for job in jobs) else {}
    now = time.time()
    return [
        _job_view(job, projects.get(job.project_id, ""), datasets, places.get(job.id), folder, stores, now)
        for job in jobs
    ]


def _job_view(
    job: Job,
    project: str,
    datasets: Mapping[int, str],
    place: int | None,
    folder: Path,
    stores: Stores,
    now: float,
) -> JobView:
    state, params = JobState(job.state), FineTuneParams(**job.params)
    running = 0.0 if job.attempt_started is None else max(0.0, now - job.attempt_started)
    return JobView(
        id=job.id,
        project=job.project_id,
        project_name=project,
        name=job.name,
        dataset=job.dataset_id,
        dataset_name=DEMO_NAME if job.dataset_id is None else datasets[job.dataset_id],
        params=params,
        state=state,
        place=place,
        study=job_study(job.id),
        folder=str(folder / str(job.id)),
        trials_finished=job.finished,
        trials_wanted=params.n_trials,
        trial_current=job.current if state in ACTIVE else None,
        best_score=job.best_score,
        best_trial=job.best_trial,
        best_params=job.best_params,
        baseline_score=job.baseline_score,
        test_score=job.test_score,
        seconds=round(job.seconds_before + running, 1),
        seconds_left=_seconds_left(job, state, now),
        resumptions=job.crashes,
        failure=job.failure,
        mlflow=_links(job, stores),
        created=_time(job.created),
        started=None if job.started is None else _time(job.started),
        ended=None if job.ended is None else _time(job.ended),
        can_cancel=state in (JobState.QUEUED, JobState.STARTING, JobState.RUNNING),
        can_resume=state in (JobState.CANCELLED, JobState.FAILED),
        has_adapter=job.best_trial is not None,
    )


def _names(session: Session, table: type[Project | Dataset], numbers: set[int]) -> dict[int, str]:
    known = session.execute(select(table.id, table.name).where(table.id.in_(numbers)))
    return {number: name for number, name in known}


def _places(session: Session) -> dict[int, int]:
    """Places in the queue, from 1, by the job's number."""
    waiting = select(Job.id).where(Job.state == JobState.QUEUED).order_by(Job.queue, Job.id)
    return {number: place for place, number in enumerate(session.scalars(waiting), 1)}


def _links(job: Job, stores: Stores) -> MlflowLinks:
    # Looked up only where there is something to link to.
    begun = job.study_run is not None
    return MlflowLinks(
        store=shown(stores.tracking.uri),
        study_run=job.study_run,
        study_url=stores.run_url(job.study_run) if begun else None,
        trials_url=stores.trials_url() if begun else None,
    )


def _seconds_left(job: Job, state: JobState, now: float) -> float | None:
    if state in ENDED:
        return 0.0
    if job.trial_seconds is None:
        return None
    left = max(0, int(job.params["n_trials"]) - job.finished) * job.trial_seconds
    spent = now - job.current_started if job.current is not None and job.current_started is not None else 0.0
    return round(max(0.0, left - min(spent, job.trial_seconds)), 1)


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
