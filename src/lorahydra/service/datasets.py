"""Datasets: uploaded files that passed the check, each one in a project."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from lorahydra.service.database import Database, Dataset, Project
from lorahydra.service.errors import NotFoundError
from lorahydra.service.rows import PAGE, get_row, moment, page_of
from lorahydra.service.uploads import Upload
from lorahydra.service.views import DatasetView, Page

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

    def upload(self, content_type: str) -> Upload:
        """Begin to receive a form with a file, which `keep` adds to a project."""
        return Upload(self._folder, content_type, self._upload_limit)

    def keep(self, project_id: int, upload: Upload, encoding: str | None = None) -> DatasetView:
        """Check the file of a form that has been received, and keep it if it can be trained on.

        `encoding` is that of its text if it is not UTF-8, and takes precedence over the form's.
        """
        report = upload.check(self._overrides, encoding)
        row = Dataset(
            project_id=project_id,
            name=upload.name,
            file=upload.keep(),
            size=upload.size,
            rows=sum(source["rows"] for source in report["sources"]),
            format=report["sources"][0]["format"],
            report=report,
        )
        try:
            with self._database.changing() as session:
                session.add(row)
        except BaseException:
            (self._folder / row.file).unlink(missing_ok=True)
            raise
        return _view(row)

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


def chosen_dataset(session: Session, project_id: int, dataset_id: int | None) -> Dataset | None:
    """The dataset that a fine-tune uses: the one it names, or the project's newest; None is the demo dataset.

    Raises:
        NotFoundError: The project has no such dataset.
    """
    of_project = select(Dataset).where(Dataset.project_id == project_id)
    if dataset_id is None:
        return session.scalars(of_project.order_by(Dataset.id.desc()).limit(1)).first()
    dataset = session.scalars(of_project.where(Dataset.id == dataset_id)).first()
    if dataset is None:
        raise NotFoundError(f"project {project_id} has no dataset {dataset_id}", "dataset_not_found")
    return dataset


def _view(row: Dataset) -> DatasetView:
    same = {name: getattr(row, name) for name in ("id", "name", "size", "rows", "format", "report")}
    return DatasetView(**same, project=row.project_id, created=moment(row.created))
