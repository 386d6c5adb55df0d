"""Fine-tunes: started, watched, cancelled and resumed. The supervisor runs them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from lorahydra.data.schemes import PREFERENCE
from lorahydra.service.choices import LOCAL, Choices, composed, without
from lorahydra.service.database import Database, Dataset, Job, Project
from lorahydra.service.datasets import chosen_dataset
from lorahydra.service.errors import ConflictError, InvalidError
from lorahydra.service.folders import cache_folder
from lorahydra.service.lengths import Lengths, Measurer, require_fit
from lorahydra.service.limits import Allowance
from lorahydra.service.planning import (
    MOST_TRIALS,
    TRIALS_KEY,
    Data,
    demo_data,
    estimate,
    overrides_of,
    rows_of,
    settled,
)
from lorahydra.service.projects import require_project
from lorahydra.service.results import Stores
from lorahydra.service.rows import PAGE, get_row, job_views, next_id, page_of
from lorahydra.service.sharing import Shared
from lorahydra.service.supervisor import study_name
from lorahydra.service.uploads import readable_name, readable_text
from lorahydra.service.views import ENDED, DatasetChoice, Estimate, FineTuneParams, JobState, JobView, Page

__all__ = ["Jobs"]

STARTS_PER_MINUTE = 30
"""How often fine-tunes may be started or resumed."""


class Jobs:
    """The fine-tunes of one server, in its `folder`; methods may be called from any thread.

    `wake` is called when there is something to start or to end.
    """

    def __init__(
        self, database: Database, folder: Path, choices: Choices, stores: Stores, wake: Callable[[], None]
    ) -> None:
        self._database, self._folder = database, folder
        self._choices, self._stores = choices, stores
        self._wake = wake
        self._measurer = Measurer()
        self._starts = Allowance(STARTS_PER_MINUTE, "starts")
        self._lists: Shared[Page[JobView]] = Shared()

    def start(
        self,
        project_id: int,
        params: FineTuneParams,
        dataset_id: DatasetChoice = None,
        name: str | None = None,
        idempotency_key: str | None = None,
        overlong: str | None = None,
    ) -> JobView:
        """Put a fine-tune into the queue.

        Args:
            project_id: Its project; 123, the project of the documentation's examples, is created on first use.
            params: What was asked for.
            dataset_id: What it is trained on.
            name: A name for people; None makes one from the model and the id.
            idempotency_key: The same key with the same request returns the same fine-tune.
            overlong: What to do with rows that are too long for the model, one of `OVERLONG`; None refuses them.
        """
        request = [project_id, dataclasses.asdict(params), dataset_id, name]
        asked = json.dumps(request if overlong is None else [*request, overlong], sort_keys=True)
        digest = hashlib.sha256(asked.encode()).hexdigest()
        with self._database.reading() as session:
            if (job := _earlier(session, idempotency_key, digest)) is not None:
                return self._views(session, [job])[0]
        self._starts.take()
        chosen = settled(params, self._choices)
        self._choices.require_judge(chosen.judge_model_id)
        label = None if name is None else readable_name(name, "the name of a fine-tune")
        with self._database.reading() as session:
            require_project(session, project_id)
            dataset = chosen_dataset(session, project_id, dataset_id)
        # Outside the transaction below, which all others wait for.
        require_fit(self._measured(chosen, dataset), overlong, str(chosen.base_model_name))
        with self._database.changing() as session:
            if (job := _earlier(session, idempotency_key, digest)) is not None:
                return self._views(session, [job])[0]
            require_project(session, project_id, create=True)
            if dataset is not None:
                get_row(session, Dataset, dataset.id)  # it may have been deleted while it was measured
            number = next_id(session, Job)
            job = Job(
                id=number,
                study=study_name(number, self._database.word if self._stores.are_shared else None),
                project_id=project_id,
                dataset_id=None if dataset is None else dataset.id,
                name=label or "",
                params=dataclasses.asdict(chosen),
                overrides=overrides_of(
                    chosen, self._choices, dataclasses.replace(self._data(dataset), overlong=overlong)
                ),
                environment={key: value for key, value in os.environ.items() if key.startswith("LORA_")},
                idempotency_key=idempotency_key,
                request_digest=digest,
                state=JobState.QUEUED,
                queue=_last_place(session),
            )
            session.add(job)
            session.flush()
            job.name = label or f"{str(chosen.base_model_name).rpartition('/')[2]} #{job.id}"
            view = self._views(session, [job])[0]
        self._wake()
        return view

    def is_empty(self) -> bool:
        """Whether there is no fine-tune."""
        with self._database.reading() as session:
            return session.scalar(select(Job.id).limit(1)) is None

    def get(self, job_id: int) -> JobView:
        """One fine-tune."""
        with self._database.reading() as session:
            return self._views(session, [get_row(session, Job, job_id)])[0]

    def find(self, study: str) -> int | None:
        """The id that a fine-tune has if its study has this name; `fine-tune-ID` is understood always."""
        number = study.rpartition("-")[2][:9]
        names = (study_name(int(number), word) for word in (None, self._database.word)) if number.isdecimal() else ()
        return int(number) if study in names else None

    def page(self, project_id: int | None = None, limit: int = PAGE, offset: int = 0) -> Page[JobView]:
        """Fine-tunes of a project or of all projects, newest first."""

        def make() -> Page[JobView]:
            with self._database.reading() as session:
                if project_id is not None:
                    get_row(session, Project, project_id)
                where = None if project_id is None else Job.project_id == project_id
                rows, total = page_of(session, Job, where, limit, offset)
                return Page(self._views(session, rows), total, limit, offset)

        return self._lists.get((project_id, limit, offset), lambda: self._database.version, make)

    def cancel(self, job_id: int) -> JobView:
        """Take a fine-tune out of the queue, or end it as Ctrl-C does; one that has ended stays as it is.

        One that was queued again because its process was killed may still have workers on a cluster: they are ended.
        """
        with self._database.changing() as session:
            this = update(Job).where(Job.id == job_id)
            cancelled = {"state": JobState.CANCELLED, "ended": time.time()}
            session.execute(this.where(Job.state == JobState.QUEUED, Job.crashes == 0).values(**cancelled))
            running = Job.state.in_((JobState.QUEUED, JobState.STARTING, JobState.RUNNING))
            session.execute(this.where(running).values(state=JobState.CANCELLING))
        self._wake()
        return self.get(job_id)

    def resume(self, job_id: int) -> JobView:
        """Queue a cancelled or failed fine-tune again, to continue its study."""
        self._starts.take()
        job = self.get(job_id)
        if not job.can_resume:
            raise ConflictError(f"fine-tune {job_id} is {job.state}: only a cancelled or failed one can be resumed")
        self._choices.require_judge(job.params.judge_model_id)
        with self._database.changing() as session:
            ended = Job.state.in_((JobState.CANCELLED, JobState.FAILED))
            queued = {"state": JobState.QUEUED, "ended": None, "failure": None, "crashes": 0}
            last = _last_place(session)
            session.execute(update(Job).where(Job.id == job_id, ended).values(**queued, queue=last))
        self._wake()
        return self.get(job_id)

    def more(self, job_id: int, n_trials: int) -> JobView:
        """Queue a fine-tune that has ended again, to go on until its study has `n_trials` trials in all.

        Raises:
            NotFoundError: There is no such fine-tune.
            InvalidError: That are not more trials than it has, or more than are allowed.
            ConflictError: It has not ended, or its judge is not set up any more.
        """
        self._starts.take()
        job = self._to_continue(job_id, n_trials)
        self._choices.require_judge(job.params.judge_model_id)
        with self._database.changing() as session:
            row = get_row(session, Job, job_id)
            if row.state in ENDED:  # and was not resumed meanwhile
                row.params = {**row.params, "n_trials": n_trials}
                row.overrides = [*without(row.overrides, TRIALS_KEY), f"{TRIALS_KEY}={n_trials}"]
                row.state, row.ended, row.failure, row.crashes = JobState.QUEUED, None, None, 0
                row.outcome = row.test_score = row.baseline_score = None
                row.queue = _last_place(session)
        self._wake()
        return self.get(job_id)

    def estimate_more(self, job_id: int, n_trials: int) -> Estimate:
        """Roughly what `more` with the same arguments will take beyond what there is; refuses the same."""
        job = self._to_continue(job_id, n_trials)
        params = dataclasses.replace(job.params, n_trials=n_trials - job.params.n_trials)
        with self._database.reading() as session:
            row = get_row(session, Job, job_id)
            dataset = None if row.dataset_id is None else get_row(session, Dataset, row.dataset_id)
        return estimate(params, self._choices, self._data(dataset), row.trial_seconds)

    def _to_continue(self, job_id: int, n_trials: int) -> JobView:
        job = self.get(job_id)
        if job.state not in ENDED:
            raise ConflictError(f"fine-tune {job_id} is {job.state}: only one that has ended can go on", "not_ended")
        if not job.params.n_trials < n_trials <= MOST_TRIALS:
            raise InvalidError(
                f"n_trials is {n_trials}, and must be more than the {job.params.n_trials} that there are, and at most "
                f"{MOST_TRIALS}",
                "bad_more_trials",
            )
        return job

    def edit(self, job_id: int, name: str | None = None, notes: str | None = None) -> JobView:
        """Give a fine-tune another name, or other notes; None leaves them as they are.

        Raises:
            NotFoundError: There is no such fine-tune.
            InvalidError: The name is not one line of 1 to 200 characters, or the notes are too long.
        """
        with self._database.changing() as session:
            job = get_row(session, Job, job_id)
            job.name = job.name if name is None else readable_name(name, "the name of a fine-tune")
            job.notes = job.notes if notes is None else readable_text(notes, "notes") or None
            return self._views(session, [job])[0]

    def estimate(self, project_id: int | None, params: FineTuneParams, dataset_id: DatasetChoice = None) -> Estimate:
        """Roughly what `start` with the same arguments will take; without a project, on the demo dataset."""
        chosen = settled(params, self._choices)
        dataset = None
        with self._database.reading() as session:
            if project_id is not None:
                require_project(session, project_id)
                dataset = chosen_dataset(session, project_id, dataset_id)
            # Of the newest fine-tune with the same model and data.
            same_data = Job.dataset_id == (None if dataset is None else dataset.id)
            timed = select(Job).where(same_data, Job.trial_seconds.is_not(None)).order_by(Job.id.desc()).limit(20)
            # The time of a judge on this machine is in that of a trial.
            alike = (chosen.base_model_name, chosen.judge_model_id == LOCAL)
            earlier = (
                job
                for job in session.scalars(timed)
                if (job.params["base_model_name"], job.params["judge_model_id"] == LOCAL) == alike
            )
            measured = next((job.trial_seconds for job in earlier), None)
        return estimate(chosen, self._choices, self._data(dataset), measured)

    def lengths(
        self, project_id: int | None, params: FineTuneParams, dataset_id: DatasetChoice = None
    ) -> Lengths | None:
        """How the rows fit the model; None if they are those of the demo dataset, or cannot be measured here and now.

        Raises:
            InvalidError: The rows cannot be tokenized.
        """
        chosen = settled(params, self._choices)
        if project_id is None:
            return None
        with self._database.reading() as session:
            require_project(session, project_id)
            dataset = chosen_dataset(session, project_id, dataset_id)
        return self._measured(chosen, dataset)

    def _measured(self, params: FineTuneParams, dataset: Dataset | None) -> Lengths | None:
        if dataset is None or not self._choices.is_here(str(params.base_model_name)):
            return None
        data = self._data(dataset)
        overrides = overrides_of(params, self._choices, data)
        if composed(overrides).data.overlong != "error":  # the server's overrides have decided
            return None
        return self._measurer.measure(overrides, str(data.file), dataset.name, cache_folder(self._folder, dataset.id))

    def counts(self) -> dict[str, int]:
        """Number of fine-tunes in each `JobState`, and `trials`, the number of finished trials of all of them."""
        with self._database.reading() as session:
            by_state = {row[0]: row[1] for row in session.execute(select(Job.state, func.count()).group_by(Job.state))}
            trials = session.scalar(select(func.sum(Job.finished))) or 0
        return {**{state.value: by_state.get(state, 0) for state in JobState}, "trials": trials}

    def _data(self, dataset: Dataset | None) -> Data:
        if dataset is None:
            return demo_data()
        used = dataset.report["sources"][0]["columns_used"]
        columns = {name: column for name, column in used.items() if name != column}
        file, pairs = self._folder / "datasets" / dataset.file, dataset.format == PREFERENCE.name
        return Data(file, rows_of(dataset.report), dataset.size, columns, pairs)

    def _views(self, session: Session, jobs: Sequence[Job]) -> list[JobView]:
        return job_views(session, jobs, self._folder / "jobs", self._stores)


def _earlier(session: Session, idempotency_key: str | None, digest: str) -> Job | None:
    """The fine-tune that the same request has started.

    Raises:
        ConflictError: Another request had this key.
    """
    if idempotency_key is None:
        return None
    job = session.scalar(select(Job).where(Job.idempotency_key == idempotency_key))
    if job is not None and job.request_digest != digest:
        raise ConflictError("this Idempotency-Key was used for another request", "idempotency_key_reused")
    return job


def _last_place(session: Session) -> int:
    return (session.scalar(select(func.max(Job.queue))) or 0) + 1
