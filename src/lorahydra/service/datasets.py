"""Datasets: uploaded files that passed the check, each one in a project."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from lorahydra.service.checking import INCOMING
from lorahydra.service.database import Database, Dataset, Project
from lorahydra.service.errors import InvalidError, NotFoundError, ServiceRefusal
from lorahydra.service.held import HeldUploads
from lorahydra.service.rows import PAGE, get_row, moment, next_id, page_of
from lorahydra.service.uploads import Reading, Upload
from lorahydra.service.views import DEMO_DATASET, DatasetChoice, DatasetView, Page

__all__ = ["Datasets", "chosen_dataset"]


class Datasets:
    """The datasets of one server; methods may be called from any thread.

    `upload_limit` is the largest size of a file in bytes; overrides of `data` decide how a file is read.
    """

    def __init__(self, database: Database, folder: Path, upload_limit: int, overrides: Sequence[str]) -> None:
        self._database = database
        self._folder = folder
        self._upload_limit = upload_limit
        self._overrides = overrides
        self._held = HeldUploads()

    def tidy(self) -> None:
        """Finish what a server that was killed had begun: keep a file that is in the database, remove all others.

        No file is looked for outside the folders of uploads: with another database by mistake, all would be removed.
        """
        with self._database.reading() as session:
            known = set(session.scalars(select(Dataset.file)))
        for incoming in self._folder.glob(f"{INCOMING}*"):
            for file in incoming.glob("dataset-*"):
                if file.name in known and not (self._folder / file.name).exists():
                    file.rename(self._folder / file.name)
            shutil.rmtree(incoming, ignore_errors=True)

    def upload(self, content_type: str) -> Upload:
        """Begin to receive a form with a file, which `keep` adds to a project."""
        return Upload(self._folder, content_type, self._upload_limit)

    def keep(self, project_id: int, upload: Upload, asked: Reading | None = None) -> DatasetView:
        """Check the file of a form that has been received, and keep it if it can be trained on.

        How it is asked to be read takes precedence over what the form says.
        """
        report = upload.check(self._overrides, asked)
        row = Dataset(
            project_id=project_id,
            name=upload.name,
            file=upload.path.name,
            size=upload.size,
            rows=sum(source["rows"] for source in report["sources"]),
            format=report["sources"][0]["format"],
            report=report,
        )
        with self._database.changing() as session:
            get_row(session, Project, project_id)  # it may have been deleted while the file arrived
            row.id = next_id(session, Dataset)
            session.add(row)
        try:
            upload.keep()
        except BaseException:
            with self._database.changing() as session:
                session.delete(get_row(session, Dataset, row.id))
            raise
        return _view(row)

    def keep_or_hold(self, project_id: int, upload: Upload, asked: Reading | None = None) -> DatasetView:
        """The same for people: if something is offered for a file that is refused, it waits for their answer.

        The offer then has its `name`, and as `upload` its token, for `settle`.
        """
        try:
            return self.keep(project_id, upload, asked)
        except ServiceRefusal as refusal:
            if refusal.offer is not None:
                token = self._held.hold(project_id, upload, refusal.offer)
                self._require_project(project_id)
                refusal.offer = {**refusal.offer, "upload": token, "name": upload.name}
            raise

    def settle(
        self, project_id: int, token: str, encoding: str | None, request: int | None, answer: int | None
    ) -> DatasetView:
        """Keep a file that waits.

        Args:
            project_id: The project that it was sent to.
            token: From `keep_or_hold`.
            encoding: The one of the offer that was chosen, or another one; None is UTF-8.
            request: Place of the column with the requests, from 0; None if no columns were offered.
            answer: Place of the column with the answers.
        """
        with self._held.take(project_id, token) as (upload, offer):
            columns = {}
            if offer["columns"]:
                if request is None or answer is None or request == answer:
                    raise self._again(project_id, upload, offer)
                likely = offer["encodings"][0]["name"] if offer["encodings"] else None
                columns = {
                    name: _renamed(offer["columns"][place], likely, encoding)
                    for name, place in (("question", request), ("answer", answer))
                    if place < len(offer["columns"])
                }
            return self.keep_or_hold(project_id, upload, Reading(encoding, columns))

    def _again(self, project_id: int, upload: Upload, offer: Mapping[str, Any]) -> ServiceRefusal:
        refusal = InvalidError("the request and the answer are two different columns: choose both", "same_column")
        refusal.offer = {**offer, "upload": self._held.hold(project_id, upload, offer)}
        return refusal

    def _require_project(self, project_id: int) -> None:
        """Keep no file that waits in a project that was deleted while the file was checked."""
        try:
            with self._database.reading() as session:
                get_row(session, Project, project_id)
        except NotFoundError:
            self.forget(project_id)
            raise

    def forget(self, project_id: int) -> None:
        """Remove the files that wait for an answer in a project."""
        self._held.drop(project_id)

    def expire(self) -> None:
        """Remove the files that have waited for an answer for too long."""
        self._held.expire()

    def close(self) -> None:
        """Remove the files that wait."""
        self._held.close()

    def get(self, dataset_id: int) -> DatasetView:
        """One dataset with its report."""
        with self._database.reading() as session:
            return _view(get_row(session, Dataset, dataset_id))

    def page(self, project_id: int, limit: int = PAGE, offset: int = 0) -> Page[DatasetView]:
        """Datasets of a project, newest first, without their reports."""
        with self._database.reading() as session:
            get_row(session, Project, project_id)
            rows, total = page_of(session, Dataset, Dataset.project_id == project_id, limit, offset)
            return Page([dataclasses.replace(_view(row), report={}) for row in rows], total, limit, offset)


def chosen_dataset(session: Session, project_id: int, dataset_id: DatasetChoice) -> Dataset | None:
    """The dataset that a fine-tune uses; None is the demo dataset.

    Raises:
        NotFoundError: The project has no such dataset.
    """
    if dataset_id == DEMO_DATASET:
        return None
    of_project = select(Dataset).where(Dataset.project_id == project_id)
    if dataset_id is None:
        return session.scalars(of_project.order_by(Dataset.id.desc()).limit(1)).first()
    dataset = session.scalars(of_project.where(Dataset.id == dataset_id)).first()
    if dataset is None:
        raise NotFoundError(f"project {project_id} has no dataset {dataset_id}", "dataset_not_found")
    return dataset


def _renamed(column: str, shown_in: str | None, encoding: str | None) -> str:
    """The name of a column in another encoding than that in which it was shown."""
    if shown_in is None or encoding is None:
        return column
    try:
        return column.encode(shown_in, "replace").decode(encoding, "replace")
    except (LookupError, ValueError):  # the check says that this is not an encoding
        return column


def _view(row: Dataset) -> DatasetView:
    same = {name: getattr(row, name) for name in ("id", "name", "size", "rows", "format", "report")}
    return DatasetView(**same, project=row.project_id, created=moment(row.created))
