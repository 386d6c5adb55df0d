"""The one thing that the API and the page call.

```python
service = Service(ServiceConfig(folder=Path("lorahydra-service")))
service.open()                     # takes the folder, finds running jobs again
project = service.create_project("Support")
job = service.start(project.id, FineTuneParams(use_llm_judge=False))
service.job(job.id).state
service.close()                    # running jobs go on by themselves
```
All methods may be called from any thread. They raise `ServiceRefusal` (one line, a code, an HTTP status) for what the
caller can mend, and `LorahydraError` for stores that cannot be read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from lorahydra.errors import ConfigError
from lorahydra.service.archive import zipped
from lorahydra.service.choices import Choices
from lorahydra.service.database import Database, Dataset, Job, Project
from lorahydra.service.errors import ConflictError, NotFoundError
from lorahydra.service.planning import Data, demo_data, estimate, overrides_of, settled
from lorahydra.service.results import Stores, log_tail
from lorahydra.service.rows import MOST, dataset_view, found, job_views, part, project_views
from lorahydra.service.sharing import Shared
from lorahydra.service.supervisor import Supervisor
from lorahydra.service.uploads import Upload, readable_name, remove_leftovers
from lorahydra.service.views import (
    DatasetView,
    Estimate,
    Examples,
    FineTuneParams,
    JobState,
    JobView,
    JudgeView,
    LeaderboardRow,
    LogTail,
    ModelView,
    Page,
    ProjectView,
)
from lorahydra.utils.files import writing

__all__ = ["EXAMPLE_PROJECT", "LONGEST_LOG", "PAGE", "Service", "ServiceConfig"]

EXAMPLE_PROJECT = 123
"""The project of the documentation's examples, made when the first fine-tune asks for it."""
PAGE = 50
"""Entries of a list at a time."""
LONGEST_LOG = 2000
"""Lines."""


@dataclass(frozen=True)
class ServiceConfig:
    """How the service is set up."""

    folder: Path
    """Database, datasets, jobs, MLflow's store and that of the studies."""
    storage: str | None = None
    """Database URL; None is `service.db` in the folder."""
    workers: int = 1
    """Jobs that run at the same time."""
    upload_limit: int = 1 << 30
    """Bytes of one dataset."""
    models_folder: Path | None = None
    """Folder whose folders may be named as base models; None is `models` in the service's folder."""
    overrides: tuple[str, ...] = ()
    """Hydra overrides for every job, for example `judge.base_url=http://127.0.0.1:8001/v1`."""
    mlflow_url: str | None = None
    """Address of MLflow's UI, for links."""


class Service:
    """Projects, datasets and fine-tunes on one folder and one database.

    Args:
        config: How it is set up.
    """

    def __init__(self, config: ServiceConfig) -> None:
        folder = config.folder.absolute()
        self.config = dataclasses.replace(config, folder=folder)
        self._choices = Choices(config.models_folder or folder / "models", config.overrides)
        self._stores = Stores(folder, config.mlflow_url)
        self._held = ExitStack()
        self._changing = threading.Lock()
        self._closing = threading.Event()
        self._lists: Shared[Page[JobView]] = Shared()
        self._database: Database
        self._supervisor: Supervisor

    def open(self) -> None:
        """Take the folder and the database, and begin to run jobs.

        Raises:
            ConfigError: Another server has them, or the configuration cannot be.
            OutputError: The folder or the database cannot be used.
        """
        folder = self.config.folder
        self._choices.default_model()  # finds mistakes in the overrides of every job
        with ExitStack() as stack:
            stack.enter_context(_held_alone(folder))
            for name in ("jobs", "datasets", "models"):
                with writing(folder):
                    (folder / name).mkdir(exist_ok=True)
            remove_leftovers(folder / "datasets")
            self._database = Database(self.config.storage or f"sqlite:///{folder / 'service.db'}")
            stack.callback(self._database.close)
            self._supervisor = Supervisor(self._database, folder / "jobs", self.config.workers, self._stores)
            self._supervisor.start()
            stack.callback(self._supervisor.stop)
            self._held = stack.pop_all()

    def close(self) -> None:
        """Stop starting jobs; those that run go on by themselves and are found again by the next `open`."""
        self._closing.set()
        self._held.close()

    def announce_end(self) -> None:
        """Tell streams that the server is about to end."""
        self._closing.set()

    @property
    def is_closing(self) -> bool:
        """Whether the server is about to end: streams should."""
        return self._closing.is_set()

    def wait_for_stores(self, seconds: float) -> bool:
        """Wait until MLflow's store is there; whether it is."""
        return self._supervisor.ready.wait(seconds)

    @property
    def fault(self) -> str | None:
        """Why fine-tunes cannot be started or watched now, in one line; None as long as they can."""
        return self._supervisor.fault

    # Projects

    def create_project(self, name: str) -> ProjectView:
        """Make a project; several may have one name.

        Raises:
            InvalidError: The name is empty, longer than 200 characters, or not printable text.
        """
        name = readable_name(name, "the name of a project")
        with self._changing, self._database.changing() as session:
            # Not left to the database: the project of the examples has its number.
            number = (session.scalar(select(func.max(Project.id))) or 0) + 1
            session.add(Project(id=number, name=name))
        return self.project(number)

    def project(self, project_id: int) -> ProjectView:
        """One project.

        Raises:
            NotFoundError: There is none.
        """
        with self._database.reading() as session:
            return project_views(session, [found(session, Project, project_id, "project")])[0]

    def projects(self, limit: int = PAGE, offset: int = 0) -> Page[ProjectView]:
        """Projects, the newest first."""
        with self._database.reading() as session:
            rows, total = part(session, Project, None, limit, offset)
            return Page(project_views(session, rows), total, limit, offset)

    # Datasets

    def upload(self, project_id: int, name: str) -> Upload:
        """Begin to take a file; `keep_upload` ends it. For those who cannot give all chunks at once.

        Raises:
            NotFoundError: There is no such project.
            InvalidError: The name cannot be that of a dataset.
        """
        self.project(project_id)
        return Upload(self.config.folder / "datasets", name, self.config.upload_limit)

    def keep_upload(self, project_id: int, upload: Upload, encoding: str | None = None) -> DatasetView:
        """Check what was uploaded and keep it.

        Args:
            project_id: Whose it is.
            upload: The file.
            encoding: Of its text, where it is not UTF-8.

        Raises:
            InvalidError: It is no dataset, or one with problems (`BadDatasetError`, whose `report` has them).
        """
        report = upload.check(self.config.overrides, encoding)
        rows = sum(source["rows"] for source in report["sources"])
        scheme = report["sources"][0]["format"]
        row = Dataset(
            project_id=project_id,
            name=upload.name,
            file=upload.keep(),
            size=upload.size,
            rows=rows,
            format=scheme,
            report=report,
        )
        try:
            with self._database.changing() as session:
                session.add(row)
        except BaseException:
            (self.config.folder / "datasets" / row.file).unlink(missing_ok=True)
            raise
        return self.dataset(row.id)

    def add_dataset(self, project_id: int, name: str, chunks: Iterable[bytes]) -> DatasetView:
        """Take a file, check it as `lorahydra data check` does, and keep it.

        Args:
            project_id: Whose it is.
            name: Name of the file; its extension says what it is.
            chunks: Its content.

        Raises:
            NotFoundError: There is no such project.
            TooLargeError: It is over `ServiceConfig.upload_limit`; nothing is kept.
            InvalidError: It is no dataset, or one with problems (`BadDatasetError`, whose `report` has them).
        """
        with self.upload(project_id, name) as upload:
            for chunk in chunks:
                upload.write(chunk)
            return self.keep_upload(project_id, upload)

    def dataset(self, dataset_id: int) -> DatasetView:
        """One dataset with its report.

        Raises:
            NotFoundError: There is none.
        """
        with self._database.reading() as session:
            return dataset_view(found(session, Dataset, dataset_id, "dataset"))

    def datasets(self, project_id: int, limit: int = PAGE, offset: int = 0) -> Page[DatasetView]:
        """Datasets of a project, the newest first, without their reports.

        Raises:
            NotFoundError: There is no such project.
        """
        with self._database.reading() as session:
            found(session, Project, project_id, "project")
            rows, total = part(session, Dataset, Dataset.project_id == project_id, limit, offset)
            return Page([dataclasses.replace(dataset_view(row), report={}) for row in rows], total, limit, offset)

    # Fine-tunes

    def start(
        self,
        project_id: int,
        params: FineTuneParams,
        *,
        dataset_id: int | None = None,
        name: str | None = None,
        idempotency_key: str | None = None,
    ) -> JobView:
        """Put a fine-tune into the queue.

        Args:
            project_id: Whose it is; the project 123 of the documentation's examples is made on first use.
            params: What was asked for.
            dataset_id: A dataset of the project; None is its newest, and the demo dataset where it has none.
            name: For people; made from model and number when None.
            idempotency_key: The same key with the same request gives the same job.

        Raises:
            NotFoundError: There is no such project or dataset.
            InvalidError: A parameter cannot be.
            ConflictError: The judge or the model is not set up here, or the key was used for another request.
        """
        digest = _digest(project_id, params, dataset_id, name)
        with self._changing:
            if (known := self._repeated(idempotency_key, digest)) is not None:
                return self.job(known)
            chosen = settled(params, self._choices)
            if chosen.judge_model_id is not None:
                self._choices.require_judge(chosen.judge_model_id)
            label = None if name is None else readable_name(name, "the name of a fine-tune")
            with self._database.changing() as session:
                dataset = self._dataset_for(session, project_id, dataset_id, make=True)
                file = None if dataset is None else self.config.folder / "datasets" / dataset.file
                job = Job(
                    project_id=project_id,
                    dataset_id=None if dataset is None else dataset.id,
                    name=label or str(chosen.base_model_name).rpartition("/")[2],
                    params=dataclasses.asdict(chosen),
                    overrides=list(overrides_of(chosen, self._choices, file, self.config.overrides)),
                    environment={key: value for key, value in os.environ.items() if key.startswith("LORA_")},
                    idempotency_key=idempotency_key,
                    request_digest=digest,
                    state=JobState.QUEUED,
                    queue=_last_place(session),
                )
                session.add(job)
                session.flush()
                if label is None:
                    job.name = f"{job.name} #{job.id}"
        self._supervisor.wake()
        return self.job(job.id)

    def repeated(
        self,
        idempotency_key: str,
        project_id: int,
        params: FineTuneParams,
        dataset_id: int | None = None,
        name: str | None = None,
    ) -> JobView | None:
        """The job that the same request with this key has made; None where there is none.

        Raises:
            ConflictError: The key was used for another request.
        """
        known = self._repeated(idempotency_key, _digest(project_id, params, dataset_id, name))
        return None if known is None else self.job(known)

    def job(self, job_id: int) -> JobView:
        """One fine-tune.

        Raises:
            NotFoundError: There is none.
        """
        with self._database.reading() as session:
            return self._views(session, [found(session, Job, job_id, "fine-tune")])[0]

    def jobs(self, project_id: int | None = None, limit: int = PAGE, offset: int = 0) -> Page[JobView]:
        """Fine-tunes of a project or of all, the newest first.

        Raises:
            NotFoundError: There is no such project.
        """
        ask = partial(self._jobs, project_id, limit, offset)
        return self._lists.get((project_id, limit, offset), lambda: self._database.version, ask)

    def _jobs(self, project_id: int | None, limit: int, offset: int) -> Page[JobView]:
        with self._database.reading() as session:
            if project_id is not None:
                found(session, Project, project_id, "project")
            where = None if project_id is None else Job.project_id == project_id
            rows, total = part(session, Job, where, limit, offset)
            return Page(self._views(session, rows), total, limit, offset)

    def cancel(self, job_id: int) -> JobView:
        """Take it out of the queue, or end it as by Ctrl-C; what has ended stays as it is.

        Raises:
            NotFoundError: There is none.
        """
        with self._database.changing() as session:
            found(session, Job, job_id, "fine-tune")
            own = update(Job).where(Job.id == job_id)
            session.execute(own.where(Job.state == JobState.QUEUED).values(state=JobState.CANCELLED, ended=time.time()))
            session.execute(
                own.where(Job.state.in_((JobState.STARTING, JobState.RUNNING))).values(state=JobState.CANCELLING)
            )
        self._supervisor.wake()
        return self.job(job_id)

    def resume(self, job_id: int) -> JobView:
        """Queue it again, to go on in the same study.

        Raises:
            NotFoundError: There is none.
            ConflictError: It is neither cancelled nor failed, or its judge is not set up any more.
        """
        job = self.job(job_id)
        if not job.can_resume:
            raise ConflictError(f"fine-tune {job_id} is {job.state}: only a cancelled or failed one is resumed")
        if job.params.judge_model_id is not None:
            self._choices.require_judge(job.params.judge_model_id)
        with self._changing, self._database.changing() as session:
            values = {"state": JobState.QUEUED, "ended": None, "failure": None, "crashes": 0}
            ended = Job.state.in_((JobState.CANCELLED, JobState.FAILED))
            session.execute(update(Job).where(Job.id == job_id, ended).values(**values, queue=_last_place(session)))
        self._supervisor.wake()
        return self.job(job_id)

    def leaderboard(self, job_id: int) -> list[LeaderboardRow]:
        """Its trials, best first; empty before the first one.

        Raises:
            NotFoundError: There is no such job.
        """
        return self._stores.leaderboard(self.job(job_id).study)

    def log(self, job_id: int, lines: int = 200) -> LogTail:
        """The last lines of its log (1 to 2000, and never more than 256 KiB).

        Raises:
            NotFoundError: There is no such job.
        """
        return log_tail(Path(self.job(job_id).folder), max(1, min(lines, LONGEST_LOG)))

    def examples(self, job_id: int, limit: int = PAGE, offset: int = 0) -> Examples:
        """Answers of the best trial beside those of the untuned model, with the judge's reasons.

        Raises:
            NotFoundError: There is no such job.
            TrackingError: MLflow's store cannot be read.
        """
        job = self.job(job_id)
        return self._stores.examples(job.study, job.mlflow.study_run, max(1, min(limit, MOST)), max(0, offset))

    def adapter(self, job_id: int) -> Iterator[bytes]:
        """The best adapter as a ZIP archive in PEFT's format, piece by piece.

        Raises:
            NotFoundError: There is no such job.
            ConflictError: There is no adapter yet.
        """
        job = self.job(job_id)
        folder = self._stores.adapter(Path(job.folder), job.study)
        if folder is None:
            raise ConflictError(f"fine-tune {job_id} has no adapter yet: none of its trials is complete", "no_adapter")
        return zipped(folder, job.study)

    # Before starting

    def judges(self) -> list[JudgeView]:
        """The judges, and what each one lacks on this server."""
        return self._choices.judges()

    def models(self) -> list[ModelView]:
        """Base models that can be named; other hub ids can be as well."""
        return self._choices.models()

    def estimate(self, project_id: int | None, params: FineTuneParams, dataset_id: int | None = None) -> Estimate:
        """What a fine-tune will take, roughly; nothing is started and no judge is asked.

        Raises:
            NotFoundError: There is no such project or dataset.
            InvalidError: A parameter cannot be.
            ConflictError: The model is not set up here.
        """
        chosen = settled(params, self._choices)
        with self._database.reading() as session:
            dataset = None if project_id is None else self._dataset_for(session, project_id, dataset_id)
            measured = _measured(session, chosen, None if dataset is None else dataset.id)
        data = demo_data() if dataset is None else self._data(dataset)
        overrides = overrides_of(chosen, self._choices, data.file, self.config.overrides)
        return estimate(chosen, overrides, data, measured)

    # About the server

    def counts(self) -> dict[str, int]:
        """Jobs by state (each of `JobState`), and `trials`: finished trials of all jobs."""
        with self._database.reading() as session:
            by_state = session.execute(select(Job.state, func.count()).group_by(Job.state)).all()
            trials = session.scalar(select(func.sum(Job.finished))) or 0
        known = {str(state): int(count) for state, count in by_state}
        return {**{state.value: known.get(state.value, 0) for state in JobState}, "trials": int(trials)}

    def _repeated(self, key: str | None, digest: str) -> int | None:
        if key is None:
            return None
        with self._database.reading() as session:
            known = session.execute(select(Job.id, Job.request_digest).where(Job.idempotency_key == key)).first()
        if known is None:
            return None
        if known[1] != digest:
            raise ConflictError("this Idempotency-Key was used for another request", "idempotency_key_reused")
        return int(known[0])

    def _dataset_for(
        self, session: Session, project_id: int, dataset_id: int | None, *, make: bool = False
    ) -> Dataset | None:
        """The dataset of a fine-tune; None is the demo dataset."""
        if session.get(Project, project_id) is None:
            if project_id != EXAMPLE_PROJECT:
                raise NotFoundError(f"there is no project {project_id}", "project_not_found")
            if make:
                session.add(Project(id=EXAMPLE_PROJECT, name="Example"))
                session.flush()
        own = select(Dataset).where(Dataset.project_id == project_id)
        if dataset_id is None:
            return session.scalars(own.order_by(Dataset.id.desc()).limit(1)).first()
        dataset = session.scalars(own.where(Dataset.id == dataset_id)).first()
        if dataset is None:
            raise NotFoundError(f"project {project_id} has no dataset {dataset_id}", "dataset_not_found")
        return dataset

    def _data(self, dataset: Dataset) -> Data:
        rows = {split["name"]: int(split["rows"]) for split in dataset.report["splits"]}
        return Data(self.config.folder / "datasets" / dataset.file, rows, dataset.size)

    def _views(self, session: Session, jobs: Sequence[Job]) -> list[JobView]:
        return job_views(session, jobs, self.config.folder / "jobs", self._stores)


def _held_alone(folder: Path) -> Any:
    """The folder's lock; whoever holds it is its one server.

    Raises:
        ConfigError: Another server holds it.
    """
    from filelock import FileLock, Timeout

    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".server.lock")
        try:
            return lock.acquire(timeout=0)
        except Timeout:
            raise ConfigError(f"another lorahydra server uses the folder {folder}: stop it, or give --folder") from None


def _last_place(session: Session) -> int:
    return (session.scalar(select(func.max(Job.queue))) or 0) + 1


def _measured(session: Session, params: FineTuneParams, dataset_id: int | None) -> float | None:
    """Mean seconds of a trial of the newest job with the same model and data."""
    same = Job.dataset_id.is_(None) if dataset_id is None else Job.dataset_id == dataset_id
    known = select(Job).where(same, Job.trial_seconds.is_not(None)).order_by(Job.id.desc()).limit(20)
    alike = (job for job in session.scalars(known) if job.params["base_model_name"] == params.base_model_name)
    return next((job.trial_seconds for job in alike), None)


def _digest(project_id: int, params: FineTuneParams, dataset_id: int | None, name: str | None) -> str:
    content = [project_id, dataclasses.asdict(params), dataset_id, name]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
