"""From rows of the database to what the API and the page show."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from lorahydra.service.database import Dataset, Job, LastId, Project
from lorahydra.service.errors import NotFoundError
from lorahydra.service.planning import MOST_TRIALS
from lorahydra.service.reasons import reason_of
from lorahydra.service.results import Stores
from lorahydra.service.supervisor import ACTIVE, job_study
from lorahydra.service.views import (
    DEMO_DATASET,
    ENDED,
    BaselineView,
    ChoiceView,
    FewShotView,
    FineTuneParams,
    ForgettingView,
    JobState,
    JobView,
    MlflowLinks,
)
from lorahydra.utils.databases import shown

__all__ = ["MOST", "PAGE", "get_row", "job_views", "moment", "next_id", "page_of"]

PAGE = 50
"""Entries of a list at a time, unless asked otherwise."""
MOST = 200
"""Largest number of entries that can be asked for at a time."""
NAMES: Mapping[Any, str] = {Project: "project", Dataset: "dataset", Job: "fine-tune"}
SAME = ("id", "name", "best_score", "best_trial", "best_params", "baseline_score", "test_score", "failure")
"""Columns of a job that are shown as they are."""
PREPARING = "preparing"
OUTCOME = ("test_low", "test_high", "gain", "gain_low", "gain_high", "gain_examples", "test_rows", "verdict")
"""What is told of the outcome as it is."""
Row = TypeVar("Row", Project, Dataset, Job)


def get_row(session: Session, table: type[Row], number: int) -> Row:
    """The row with an id.

    Raises:
        NotFoundError: There is none.
    """
    row = session.get(table, number)
    if row is None:
        what = NAMES[table]
        raise NotFoundError(f"there is no {what} {number}", f"{what.replace('-', '_')}_not_found")
    return row


def next_id(session: Session, table: type[Row]) -> int:
    """An id that no row has or had: it may stand in bookmarks, in MLflow, or in names of folders that are to go."""
    deleted = session.get(LastId, table.__tablename__)
    return max(session.scalar(select(func.max(table.id))) or 0, 0 if deleted is None else deleted.number) + 1


def page_of(session: Session, table: type[Row], where: Any, limit: int, offset: int) -> tuple[list[Row], int]:
    """Rows of one page, newest first, and the number of rows on all pages."""
    rows, count = select(table), select(func.count()).select_from(table)
    if where is not None:
        rows, count = rows.where(where), count.where(where)
    page = session.scalars(rows.order_by(table.id.desc()).limit(limit).offset(offset)).all()
    return list(page), session.scalar(count) or 0


def moment(seconds: float) -> datetime:
    """A time of the database."""
    return datetime.fromtimestamp(seconds, UTC)


def job_views(session: Session, jobs: Sequence[Job], folder: Path, stores: Stores) -> list[JobView]:
    """Fine-tunes as they are now, read with three queries for all of them; `folder` holds the folders of all jobs."""

    def names(table: type[Project | Dataset], numbers: set[int | None]) -> dict[int | None, str]:
        return {row[0]: row[1] for row in session.execute(select(table.id, table.name).where(table.id.in_(numbers)))}

    projects = names(Project, {job.project_id for job in jobs})
    datasets = names(Dataset, {job.dataset_id for job in jobs} - {None}) | {None: DEMO_DATASET}
    places: dict[int, int] = {}
    if any(job.state == JobState.QUEUED for job in jobs):
        waiting = select(Job.id).where(Job.state == JobState.QUEUED).order_by(Job.queue, Job.id)
        places = {number: place for place, number in enumerate(session.scalars(waiting), 1)}
    return [
        _job_view(
            job,
            project_name=projects[job.project_id],
            dataset_name=datasets[job.dataset_id],
            place=places.get(job.id),
            folder=str(folder / str(job.id)),
            mlflow=_links(job, stores),
        )
        for job in jobs
    ]


def _job_view(job: Job, **looked_up: Any) -> JobView:
    state, params, now = JobState(job.state), FineTuneParams(**job.params), time.time()
    baseline = job.validation_baseline
    running = 0.0 if job.attempt_started is None else max(0.0, now - job.attempt_started)
    return JobView(
        **{name: getattr(job, name) for name in SAME},
        **looked_up,
        project=job.project_id,
        dataset=job.dataset_id,
        params=params,
        state=state,
        study=job_study(job),
        trials_finished=job.finished,
        trials_wanted=params.n_trials,
        trial_current=job.current if state in ACTIVE else None,
        **_outcome(job),
        seconds=round(job.seconds_before + running, 1),
        seconds_left=_seconds_left(job, now),
        resumptions=job.crashes,
        created=moment(job.created),
        started=None if job.started is None else moment(job.started),
        ended=None if job.ended is None else moment(job.ended),
        can_cancel=state not in (*ENDED, JobState.CANCELLING),
        can_resume=state in (JobState.CANCELLED, JobState.FAILED),
        can_continue=state in ENDED and params.n_trials < MOST_TRIALS,
        has_adapter=job.best_trial is not None,
        failure_reason=None if job.failure is None else reason_of(job.failure),
        notes=job.notes or "",
        **_stage(job, now),
        validation_baseline=None if baseline is None else BaselineView(**baseline),
    )


def _stage(job: Job, now: float) -> dict[str, Any]:
    """What is done before the first trial of an attempt and after the last one, and for how long already."""
    if job.state != JobState.RUNNING:
        return {}
    stage, since = job.stage, job.stage_started
    if stage is None and job.current is None and job.finished < int(job.params["n_trials"]):
        stage, since = PREPARING, job.attempt_started
    return {"stage": stage, "stage_seconds": None if stage is None else round(max(0.0, now - (since or now)), 1)}


def _outcome(job: Job) -> dict[str, Any]:
    """What is known once the study has ended."""
    outcome = job.outcome or {}
    choice = outcome.get("choice")
    told = {name: outcome.get(name) for name in OUTCOME}
    few_shot, forgetting = outcome.get("few_shot"), outcome.get("forgetting")
    return {
        **told,
        "few_shot": None if few_shot is None else FewShotView(**few_shot),
        "forgetting": None if forgetting is None else ForgettingView(**forgetting),
        "choice": None if choice is None else ChoiceView(**choice),
    }


def _links(job: Job, stores: Stores) -> MlflowLinks:
    # MLflow is asked only when there is something to link to.
    begun = job.study_run is not None
    return MlflowLinks(
        store=shown(stores.tracking.uri),
        study_run=job.study_run,
        study_url=stores.run_url(job.study_run) if begun else None,
        trials_url=stores.trials_url(job_study(job), job.name) if begun else None,
    )


def _seconds_left(job: Job, now: float) -> float | None:
    if job.state in ENDED:
        return 0.0
    if job.trial_seconds is None or job.stage is not None:
        return None
    left = max(0, int(job.params["n_trials"]) - job.finished) * job.trial_seconds
    spent = now - job.current_started if job.current is not None and job.current_started is not None else 0.0
    return round(max(0.0, left - min(spent, job.trial_seconds)), 1)
