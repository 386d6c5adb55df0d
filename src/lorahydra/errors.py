"""Every error a user can cause or meet, as one tree under `LorahydraError`.

A command turns these into one line on stderr and an exit code: 2 if the user's input is at fault, 3 if an
outside service failed for good. Anything that is not a `LorahydraError` is a bug and keeps its traceback.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

__all__ = [
    "PREDICTIONS_KEPT",
    "STUDY_KEPT",
    "ConfigError",
    "DataError",
    "JudgeBudgetError",
    "JudgeCoverageError",
    "JudgeError",
    "JudgeNotFoundError",
    "JudgeSetupError",
    "LorahydraError",
    "MetricError",
    "ModelError",
    "NotRecordedError",
    "OutputError",
    "ServiceError",
    "StoreUnavailableError",
    "StudyError",
    "StudyStoreError",
    "TrackingError",
    "TrainingError",
    "TrialPruned",
    "UserError",
    "causes",
    "clear_frames",
    "ends_study",
    "library_errors",
    "one_line",
    "reason",
]

STUDY_KEPT = "; the study is kept, go on with: "
"""Stands between an error and the command that continues the study."""
PREDICTIONS_KEPT = ". The adapter and the predictions are kept"
"""Stands behind an error of a judge whose trial need not be trained again. The service, which has no use for the
commands behind both, cuts them off.
"""


class LorahydraError(Exception):
    """Root of all errors that lorahydra raises on purpose; the message is one line made for the user."""

    exit_code = 1


class UserError(LorahydraError):
    """The user's input is at fault: the message says what, where, and what to do."""

    exit_code = 2


class ConfigError(UserError):
    """A key, a value or a combination of values in the configuration is not valid."""


class JudgeNotFoundError(ConfigError):
    """No judge has the name that was given; those in `registered` are all."""

    def __init__(self, name: str, registered: Sequence[str]) -> None:
        super().__init__(f"LLM judge model not found: {name!r}. Registered: {', '.join(registered)}.")


class JudgeSetupError(UserError):
    """A judge cannot be used as it is set up: its key, model, certificate or SDK is missing or wrong."""


class JudgeBudgetError(UserError):
    """Judging stopped because `judge.max_cost` is spent."""


class DataError(UserError):
    """A dataset cannot be used.

    Args:
        message: What is wrong and what to do.
        path: The file, if there is one.
        line: 1-based line (or row, for formats without lines).
        field: The column or key at fault.
    """

    def __init__(
        self, message: str, *, path: Path | str | None = None, line: int | None = None, field: str | None = None
    ) -> None:
        where = _escaped(str(path)) if path is not None else ""
        if line is not None:
            where += f":{line}" if where else f"line {line}"
        if field is not None:
            where += f": field '{field}'" if where else f"field '{field}'"
        super().__init__(f"{where}: {message}" if where else message)
        self.path = path
        self.line = line
        self.field = field


class MetricError(UserError):
    """A metric fails on predictions or references, or returns what is not a score."""


class ModelError(UserError):
    """A base model, encoder or adapter is unknown, missing, broken or does not fit the request."""


class OutputError(UserError):
    """Results cannot be written: there is no permission or no space, or something else has the name."""


class StudyError(UserError):
    """A study cannot begin, go on or be found, for example because another study has its name.

    Args:
        message: One line for the user.
        exit_code: That of the process which was at fault, if it was another one.
    """

    def __init__(self, message: str, *, exit_code: int | None = None) -> None:
        super().__init__(message)
        if exit_code is not None:
            self.exit_code = exit_code


class StudyStoreError(StudyError):
    """The database of studies cannot be reached, read or written."""

    exit_code = 3


class TrialPruned(LorahydraError):
    """A study ended this trial early because others did better at the same point."""


class TrainingError(LorahydraError):
    """A trial ended without a usable adapter: NaN, divergence or out of memory.

    Args:
        message: One line for the user.
        reason: A short fixed word: `nan`, `diverged` or `out_of_memory`.
    """

    exit_code = 2

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class ServiceError(LorahydraError):
    """An outside service (model hub, package index, judge) failed for good."""

    exit_code = 3


class JudgeError(ServiceError):
    """A judge gave too few verdicts: it cannot be reached, or its replies cannot be used."""


class JudgeCoverageError(JudgeError):
    """The judge answers, but its replies on this trial's answers cannot be used, or too few of them."""


class TrackingError(ServiceError):
    """The tracking store cannot be reached, read or written."""


class StoreUnavailableError(TrackingError):
    """The tracking store cannot be reached now, or fails, and may work again soon."""


class NotRecordedError(TrackingError):
    """The store answers but does not have what it was asked for."""

    exit_code = 2


@contextmanager
def library_errors(ours: Callable[[Exception], Exception], *, but: type[Exception] = LorahydraError) -> Iterator[None]:
    """Turn whatever a library raises in the block into one of our errors: libraries do not list what they raise.

    A `LorahydraError` passes, and so does a `MemoryError`, which says nothing of what the library was given.

    Args:
        ours: Makes the error from the library's.
        but: Another kind that passes.
    """
    try:
        yield
    except (LorahydraError, MemoryError, but):
        raise
    except Exception as error:
        raise ours(error) from error


def ends_study(error: object) -> bool:
    """Whether every other trial of a study would meet an error as well: the study stops, and can go on later."""
    fatal = isinstance(error, ServiceError | OutputError | JudgeSetupError | JudgeBudgetError)
    return fatal and not isinstance(error, JudgeCoverageError)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and what led to it, the newest first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def clear_frames(error: BaseException) -> None:
    """Free what the frames of an error and its causes hold, such as a trial's model and batches."""
    for cause in causes(error):
        traceback.clear_frames(cause.__traceback__)


def one_line(text: object, limit: int = 300) -> str:
    """A text from a file or a library as one printable line of at most `limit` characters."""
    line = _escaped(" ".join(str(text)[: 4 * limit].split()))
    return line if len(line) <= limit else line[: limit - 1] + "…"


def last_line(text: str) -> str:
    """The last line of a text that is not blank; empty if there is none."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def reason(error: BaseException) -> str:
    """What an error of a library says, in one line; with its kind if the message alone says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = " ".join(lines[: 2 if lines[0].endswith(":") else 1]) if lines else ""
    if not line or isinstance(error, LookupError | AttributeError | RecursionError):
        line = f"{type(error).__name__}{': ' if line else ''}{line}"
    return one_line(line)


def _escaped(text: str) -> str:
    """A text, which may hold line ends and bytes that are not text, with such characters as escapes."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
