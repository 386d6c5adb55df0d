"""Problems of single rows, collected instead of raised, so that a report names many at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from lorahydra.errors import DataError, library_errors, one_line, reason

__all__ = ["MAX_PROBLEMS", "Fault", "Place", "Problem", "Problems", "RowError", "reading"]

MAX_PROBLEMS = 20
"""Problems that are kept with their text; all are counted."""


class Fault(StrEnum):
    """Kinds of problem; some are counted separately in a report."""

    EMPTY_ANSWER = "empty_answer"
    UNDECODABLE = "undecodable"
    OTHER = "other"


@dataclass(frozen=True)
class Problem:
    """One problem of one row."""

    line: int | None
    """1-based line, or row where the format has no lines."""
    field: str | None
    """Column or key with the problem, where it is known."""
    message: str
    """What is wrong and, where it helps, what to do."""
    source: str = ""
    """The file as the user named it."""

    @classmethod
    def of(cls, error: DataError) -> Problem:
        """An error about a source as a problem."""
        where = str(DataError("", path=error.path, line=error.line, field=error.field))
        source = "" if error.path is None else str(error.path)
        return cls(error.line, error.field, str(error).removeprefix(where), source)

    def __str__(self) -> str:
        return str(DataError(self.message, path=self.source or None, line=self.line, field=self.field))


class RowError(Exception):
    """A row does not make an example."""

    def __init__(self, message: str, *, field: str | None = None, fault: Fault = Fault.OTHER) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.fault = fault


@dataclass
class Problems:
    """The first `MAX_PROBLEMS` problems of a source, and the number of each kind."""

    first: list[Problem] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        """Number of problems, including those that are not kept."""
        return self.counts.total()

    def add(self, line: int | None, message: str, *, field: str | None = None, fault: Fault = Fault.OTHER) -> None:
        """Count a problem and keep it while there is room; one without a message is counted only."""
        self.counts[fault.value] += 1
        if message and len(self.first) < MAX_PROBLEMS:
            self.first.append(Problem(line, field and one_line(field), one_line(message)))


@dataclass
class Place:
    """How far a reader has got."""

    line: int | None = None
    """1-based line, or row where the format has no lines."""


@contextmanager
def reading(path: Path | str) -> Iterator[Place]:
    """Turn any error in reading `path` into one clear line; yields the place that the block keeps up to date for it.

    Raises:
        DataError: Instead of any other error of the block: libraries do not document which ones they raise on a
            broken file.
        MemoryError: There is not enough memory.
    """
    place = Place()

    def unreadable(error: Exception) -> DataError:
        if isinstance(error, PermissionError):
            return DataError("no permission to read it", path=path)
        said = error.strerror or one_line(error) if isinstance(error, OSError) else reason(error)
        return DataError(f"cannot be read: {said}", path=path, line=place.line or None)

    with library_errors(unreadable):
        yield place
