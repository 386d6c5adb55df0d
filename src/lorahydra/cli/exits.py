"""How a command ends: one line on stderr and an exit code for every error that a user can cause or meet."""

from __future__ import annotations

import functools
import io
import os
import select
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from lorahydra.errors import LorahydraError, OutputError
from lorahydra.utils.files import REASONS
from lorahydra.utils.interrupts import EXIT_INTERRUPTED, noticed

__all__ = ["EXIT_DIFFERENT", "TRACEBACK", "exit_codes", "wants_traceback"]

TRACEBACK = "LORAHYDRA_TRACEBACK"
"""Environment variable that tells worker processes what the user asked for."""
EXIT_DIFFERENT = 1
"""A reproduced run gave different metrics."""
EXIT_UNREAD = 1
"""The exit code that click uses if nobody reads the output."""


@functools.cache
def wants_traceback() -> bool:
    """Whether the user asked for tracebacks with `HYDRA_FULL_ERROR=1`.

    Read once: later `hydra_app.launch` sets the variable for another purpose, and `TRACEBACK` for worker processes.
    """
    return os.environ.get(TRACEBACK, os.environ.get("HYDRA_FULL_ERROR", "0")) not in ("", "0")


@contextmanager
def exit_codes(resume_hint: Callable[[], str] = str) -> Iterator[None]:
    """End the process with the documented exit code: 2 for bad input, 3 for an outside service, 130 for an interrupt.

    Args:
        resume_hint: Returns what to say after an interruption, or after a disk has failed.
    """
    _escape_unencodable()
    try:
        with noticed():
            yield
    except LorahydraError as error:
        _end(str(error), error.exit_code)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            raise SystemExit(EXIT_UNREAD) from None
        if error.errno not in REASONS:
            raise
        what = f"cannot read or write {error.filename or 'a file'}: {REASONS[error.errno]}"
        _end(f"{what}{resume_hint()}", OutputError.exit_code)
    except KeyboardInterrupt:
        _end(f"interrupted{resume_hint()}", EXIT_INTERRUPTED)


def _escape_unencodable() -> None:
    """Write an escape for a character that the terminal's encoding does not have, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def _nobody_reads() -> bool:
    """Whether the reader of stdout has ended, as `head` does after a few lines. The rest of the output is dropped."""
    poll = select.poll()
    poll.register(sys.stdout, 0)  # poll reports errors even if no event is asked for
    if not poll.poll(0):
        return False
    # Python flushes its buffer when it ends, and would print an error.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _end(message: str, code: int) -> NoReturn:
    """Print one line and exit; called while the exception is being handled."""
    if wants_traceback():
        traceback.print_exc()
    line = " ".join(message.split())
    sys.stdout.flush()
    sys.stderr.write(f"lorahydra: {line}\n")
    raise SystemExit(code)
