"""Projects: each one keeps datasets and the fine-tunes made with them together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from lorahydra.service.database import Database, Dataset, Job, Project
from lorahydra.service.errors import NotFoundError
from lorahydra.service.rows import PAGE, get_row, moment, next_id, page_of
from lorahydra.service.uploads import readable_name
from lorahydra.service.views import Page, ProjectView

__all__ = ["EXAMPLE_PROJECT", "Projects", "require_project"]

EXAMPLE_PROJECT = 123
"""The project of the documentation's examples. It is created when the first fine-tune asks for it."""


class Projects:
    """The projects of one server; methods may be called from any thread."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, name: str) -> ProjectView:
        """Create a project; several projects may have the same name.

        Raises:
            InvalidError: The name is empty, longer than 200 characters, or not printable text.
        """
        name = readable_name(name, "the name of a project")
        with self._database.changing() as session:
            project = Project(id=next_id(session, Project), name=name)
            session.add(project)
            session.flush()
            return _views(session, [project])[0]

    def get(self, project_id: int) -> ProjectView:
        """One project.

        Raises:
            NotFoundError: There is no such project.
        """
        with self._database.reading() as session:
            return _views(session, [get_row(session, Project, project_id)])[0]

    def page(self, limit: int = PAGE, offset: int = 0) -> Page[ProjectView]:
        """Projects, newest first."""
        with self._database.reading() as session:
            rows, total = page_of(session, Project, None, limit, offset)
            return Page(_views(session, rows), total, limit, offset)


def require_project(session: Session, project_id: int, *, create: bool = False) -> None:
    """Check that a project exists; the example project counts as existing, and is created if `create` is true.

    Raises:
        NotFoundError: There is no such project.
    """
    if session.get(Project, project_id) is None:
        if project_id != EXAMPLE_PROJECT:
            raise NotFoundError(f"there is no project {project_id}", "project_not_found")
        if create:
            session.add(Project(id=EXAMPLE_PROJECT, name="Example"))
            session.flush()


def _views(session: Session, rows: Sequence[Project]) -> list[ProjectView]:
    """Projects with the numbers of their datasets and fine-tunes, read with two queries for all of them."""

    def counts(project: Any) -> dict[int, int]:
        counted = select(project, func.count()).where(project.in_([row.id for row in rows])).group_by(project)
        return {number: count for number, count in session.execute(counted)}

    datasets, jobs = counts(Dataset.project_id), counts(Job.project_id)
    return [
        ProjectView(row.id, row.name, moment(row.created), datasets.get(row.id, 0), jobs.get(row.id, 0)) for row in rows
    ]
