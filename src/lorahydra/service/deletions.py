"""What is deleted: shown before, written down, and then carried out by the deleter.

A deletion is one transaction. After it, nothing that goes can be seen or used any more, and a row of the table
`deletions` says which files, runs and studies still have to be removed; a server that is killed goes on with that.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from lorahydra.service.database import Database, Dataset, Deletion, Job, KeptRuns, LastId, Project
from lorahydra.service.errors import ConflictError, NotFoundError, ServiceRefusal
from lorahydra.service.folders import CACHES, DATASETS, JOBS, cache_name
from lorahydra.service.results import Stores
from lorahydra.service.rows import get_row, moment
from lorahydra.service.supervisor import ACTIVE, job_study, study_name
from lorahydra.service.views import (
    ENDED,
    DeletionPlan,
    DeletionView,
    GoingDataset,
    GoingFineTune,
    JobState,
    JobView,
    Kind,
)
from lorahydra.utils.files import size_of

__all__ = ["Deletions", "unused_caches"]

TABLES: dict[Kind, Any] = {Kind.PROJECT: Project, Kind.DATASET: Dataset, Kind.FINE_TUNE: Job}
DAY = 24 * 3600.0


@dataclass(frozen=True)
class _Selection:
    """The rows that go."""

    subject: Any
    datasets: Sequence[Dataset]
    jobs: Sequence[Job]
    kept: Sequence[KeptRuns]
    """Of fine-tunes that were deleted before."""

    @property
    def project_id(self) -> int:
        return int(self.subject.id if isinstance(self.subject, Project) else self.subject.project_id)

    @property
    def digest(self) -> str:
        ids = [[row.id for row in self.datasets], [row.id for row in self.jobs], [row.job_id for row in self.kept]]
        return hashlib.sha256(repr(ids).encode()).hexdigest()[:16]

    def studies(self, *, keep_runs: bool = False) -> list[str]:
        """Studies whose runs go."""
        jobs = [] if keep_runs else [job_study(job) for job in self.jobs]
        return [*jobs, *(kept.study or study_name(kept.job_id) for kept in self.kept)]


class Deletions:
    """Deletions of one server, in its `folder`; methods may be called from any thread.

    `wake` is called when there is something to remove, `forget_uploads` with the id of a deleted project: files that
    were sent to it may wait for an answer.
    """

    def __init__(
        self,
        database: Database,
        folder: Path,
        stores: Stores,
        wake: Callable[[], None],
        retention_days: int | None,
        forget_uploads: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._database, self._folder, self._stores = database, folder, stores
        self._wake, self._forget_uploads = wake, forget_uploads
        self._retention = retention_days

    def plan(self, kind: Kind, number: int) -> DeletionPlan:
        """What the deletion of a project, a dataset or a fine-tune would take with it.

        Raises:
            NotFoundError: There is no such thing.
            LorahydraError: MLflow's store cannot be read.
        """
        with self._database.reading() as session:
            going = _select(session, kind, number)
            caches = unused_caches(session, going.datasets, going.jobs)
        jobs = [
            GoingFineTune(job.id, job.name, JobState(job.state), size_of(self._folder / JOBS / str(job.id)))
            for job in going.jobs
        ]
        datasets = [
            GoingDataset(one.id, one.name, one.rows, size_of(self._folder / DATASETS / one.file))
            for one in going.datasets
        ]
        cache_size = sum(size_of(self._folder / CACHES / name) for name in caches)
        recorded = self._stores.recorded(going.studies())
        return DeletionPlan(
            kind=kind,
            id=number,
            name=going.subject.name,
            fine_tunes=jobs,
            datasets=datasets,
            running=[job.id for job in going.jobs if _is_running(job)],
            cache_size=cache_size,
            runs=len(recorded.run_ids),
            runs_size=recorded.size,
            registered_models=list(recorded.models),
            size=sum(job.size for job in jobs) + sum(one.size for one in datasets) + cache_size + recorded.size,
            digest=going.digest,
        )

    def delete(
        self,
        kind: Kind,
        number: int,
        *,
        keep_runs: bool = False,
        with_fine_tunes: bool = False,
        digest: str | None = None,
    ) -> DeletionView:
        """Delete a project, a dataset or a fine-tune, and all that is in it or was made with it.

        Args:
            kind: What it is.
            number: Its id.
            keep_runs: Keep the runs of a fine-tune and its registered model in MLflow.
            with_fine_tunes: Delete the fine-tunes that use a dataset with it; otherwise they are a reason to refuse.
            digest: Of the plan that was shown; None deletes whatever there is.

        Raises:
            NotFoundError: There is no such thing.
            ConflictError: A fine-tune is running, uses the dataset, or has been added since the plan was shown.
        """
        plan = self.plan(kind, number)
        with self._database.changing() as session:
            going = _select(session, kind, number)
            if going.digest != plan.digest or digest not in (None, going.digest):
                raise ConflictError("other things would be deleted now than were shown: look again", "deletion_changed")
            _check(going, with_fine_tunes or kind is not Kind.DATASET)
            deletion = Deletion(
                kind=kind,
                number=number,
                project_id=going.project_id,
                parts={
                    JOBS: [job.id for job in going.jobs],
                    DATASETS: [one.file for one in going.datasets],
                    CACHES: [cache_name(of) for of in _data_of(going.datasets, going.jobs)],
                    "studies": [job_study(job) for job in going.jobs],
                    "runs": going.studies(keep_runs=keep_runs),
                },
                size=plan.size - (plan.runs_size if keep_runs else 0),
            )
            session.add(deletion)
            _forget(session, going, keep_runs=keep_runs)
            session.flush()
            view = _view(deletion)
        if kind is Kind.PROJECT:
            self._forget_uploads(number)
        self._wake()
        return view

    def get(self, deletion_id: int) -> DeletionView:
        """How far a deletion is.

        Raises:
            NotFoundError: There is no such deletion.
        """
        with self._database.reading() as session:
            row = session.get(Deletion, deletion_id)
            if row is None:
                raise NotFoundError(f"there is no deletion {deletion_id}", "deletion_not_found")
            return _view(row)

    def expires(self, job: JobView) -> datetime | None:
        """When a fine-tune is deleted by itself; None before its end, and if fine-tunes are kept."""
        if self._retention is None or job.ended is None:
            return None
        return job.ended + timedelta(days=self._retention)

    def expire(self, now: float | None = None) -> None:
        """Delete what is older than the server's retention: fine-tunes, then datasets that none of them uses."""
        if self._retention is None:
            return
        before = (time.time() if now is None else now) - self._retention * DAY
        used = select(Job.dataset_id).where(Job.dataset_id.is_not(None))
        for kind, old in (
            (Kind.FINE_TUNE, select(Job.id).where(Job.state.in_(ENDED), Job.ended < before)),
            (Kind.DATASET, select(Dataset.id).where(Dataset.created < before, Dataset.id.not_in(used))),
        ):
            with self._database.reading() as session:
                numbers = session.scalars(old).all()
            for number in numbers:
                with suppress(ServiceRefusal):  # somebody has deleted, resumed or used it meanwhile
                    self.delete(kind, number)


def unused_caches(session: Session, datasets: Iterable[Dataset], jobs: Iterable[Job]) -> list[str]:
    """Names of the caches that no fine-tune needs any more once these datasets and fine-tunes are gone."""
    going = {job.id for job in jobs}
    return [cache_name(of) for of in _data_of(datasets, jobs) if not _users(session, of) - going]


def _data_of(datasets: Iterable[Dataset], jobs: Iterable[Job]) -> list[int | None]:
    """Ids of the datasets that go or are used by a fine-tune that goes; None is the demo dataset."""
    return list(dict.fromkeys([*(one.id for one in datasets), *(job.dataset_id for job in jobs)]))


def _users(session: Session, dataset_id: int | None) -> set[int]:
    return set(session.scalars(select(Job.id).where(Job.dataset_id == dataset_id)))


def _select(session: Session, kind: Kind, number: int) -> _Selection:
    subject = get_row(session, TABLES[kind], number)
    if kind is Kind.FINE_TUNE:
        return _Selection(subject, [], [subject], [])
    if kind is Kind.DATASET:
        datasets, of_job, of_kept = [subject], Job.dataset_id == number, KeptRuns.dataset_id == number
    else:
        in_project = select(Dataset).where(Dataset.project_id == number).order_by(Dataset.id)
        datasets = list(session.scalars(in_project))
        of_job, of_kept = Job.project_id == number, KeptRuns.project_id == number
    jobs = session.scalars(select(Job).where(of_job).order_by(Job.id)).all()
    kept = session.scalars(select(KeptRuns).where(of_kept).order_by(KeptRuns.job_id)).all()
    return _Selection(subject, datasets, jobs, kept)


def _check(going: _Selection, with_fine_tunes: bool) -> None:
    """Refuse what would take away a running fine-tune, or fine-tunes that nobody has named."""
    if running := [job for job in going.jobs if _is_running(job)]:
        raise ConflictError(f"{_named(running)} {_is(running)} running: cancel first, then delete", "still_running")
    if going.jobs and not with_fine_tunes:
        raise ConflictError(
            f"dataset {going.subject.id} is used by {_named(going.jobs)}: delete them first, or with it "
            "(with_fine_tunes=true)",
            "dataset_in_use",
        )


def _is_running(job: Job) -> bool:
    """Whether processes may run for it; those of one that is queued again after a crash may be on a cluster."""
    return job.state in ACTIVE or (job.state == JobState.QUEUED and job.crashes > 0)


def _named(jobs: Sequence[Job]) -> str:
    plural = "s" if len(jobs) > 1 else ""
    return f"fine-tune{plural} " + ", ".join(f"{job.id} ({job.name})" for job in jobs)


def _is(jobs: Sequence[Job]) -> str:
    return "are" if len(jobs) > 1 else "is"


def _forget(session: Session, going: _Selection, *, keep_runs: bool) -> None:
    """Delete the rows, and remember which ids were used."""
    for job in going.jobs if keep_runs else ():
        kept = KeptRuns(job_id=job.id, project_id=job.project_id, dataset_id=job.dataset_id, study=job.study)
        session.add(kept)
    session.execute(delete(KeptRuns).where(KeptRuns.job_id.in_([kept.job_id for kept in going.kept])))
    projects = [going.subject] if isinstance(going.subject, Project) else []
    for table, rows in ((Job, going.jobs), (Dataset, going.datasets), (Project, projects)):
        if rows:
            ids = [row.id for row in rows]
            last = session.get(LastId, table.__tablename__)
            session.merge(LastId(table=table.__tablename__, number=max(*ids, 0 if last is None else last.number)))
            session.execute(delete(table).where(table.id.in_(ids)))


def _view(row: Deletion) -> DeletionView:
    return DeletionView(
        id=row.id,
        kind=Kind(row.kind),
        number=row.number,
        project=row.project_id,
        size=row.size,
        requested=moment(row.requested),
        ended=None if row.ended is None else moment(row.ended),
        fault=row.fault,
    )
