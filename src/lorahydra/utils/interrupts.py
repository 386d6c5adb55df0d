"""A Ctrl-C that is not lost, and a second one that ends the process at once.

Python raises `KeyboardInterrupt` wherever the main thread happens to be. In a destructor, in a callback of a C library
or under a bare `except` of a library it vanishes, and the program goes on as if nothing had happened. The handler here
also remembers the signal, and work that goes on in steps raises the interrupt again between them.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

__all__ = [
    "EXIT_INTERRUPTED",
    "forget",
    "interrupted",
    "listen",
    "listening",
    "noticed",
    "postponed",
    "raise_if_interrupted",
    "stop_listening",
]

EXIT_INTERRUPTED = 130
SAME_SIGNAL_SECONDS = 0.2
"""Signals that are closer together count as one: a terminal and a launcher may both pass on the same Ctrl-C."""

_first: float | None = None
"""`time.monotonic()` of the signal that ends this process or this study."""
_number = signal.SIGINT
"""The signal that came at `_first`."""
_hint: Callable[[], str] | None = None
"""Says how to go on; None in a process that lorahydra may not end."""
_postponed = 0
"""Number of blocks around the current code that an interrupt must not cut in two."""
_ended = False
"""Whether everything is done, so that a signal may end the process without a message."""


def listen(hint: Callable[[], str], *, always: bool = False) -> None:
    """Handle SIGINT and SIGTERM, which schedulers send before they kill, until the end of the process.

    The first one raises `KeyboardInterrupt`. A later Ctrl-C ends the process at once with exit code 130 and one line,
    which ends with the `hint` on how to go on; a later SIGTERM changes nothing. May be called again with another hint:
    signals that have come are not forgotten. With `always`, it works even if the process was started with Ctrl-C
    ignored, as shells do with background jobs, and SIGUSR1 and SIGUSR2, by which Slurm announces the end of a job,
    count as SIGTERM.
    """
    global _hint, _ended
    _hint, _ended = hint, False
    sys.unraisablehook = _report_unraisable
    signal.signal(signal.SIGTERM, _handle)
    if always or signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _handle)
    if always:
        for announced in ("SIGUSR1", "SIGUSR2"):
            if hasattr(signal, announced):  # not on Windows
                signal.signal(getattr(signal, announced), _handle)


@contextmanager
def listening() -> Iterator[None]:
    """Remember Ctrl-C inside the block, in a process that goes on after it, such as a notebook.

    Raises:
        KeyboardInterrupt: At the end of the block, if an interrupt was lost inside.
    """
    global _first
    # A handler that is already installed stays, and only the main thread may handle signals.
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    _first = None
    signal.signal(signal.SIGINT, _handle)
    try:
        with noticed():
            yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _first = None


@contextmanager
def noticed() -> Iterator[None]:
    """A block that ends with `KeyboardInterrupt` if an interrupt has come, even if it was lost."""
    try:
        yield
    except Exception:
        # A library may have turned it into another error.
        raise_if_interrupted()
        raise
    raise_if_interrupted()


@contextmanager
def postponed() -> Iterator[None]:
    """A short block that an interrupt does not cut in two: it is raised after the block, unless that raises itself.

    Works where `listen` or `listening` handles signals. A block that waits for something looks at `interrupted`.
    """
    global _postponed
    before = _first  # an interrupt that was raised before: this block may be cleaning up after it
    _postponed += 1
    try:
        yield
    finally:
        _postponed -= 1
    if before is None:
        raise_if_interrupted()


def interrupted() -> bool:
    """Whether an interrupt has come."""
    return _first is not None


def raise_if_interrupted() -> None:
    """Raise an interrupt that was lost, in the main thread; called between two steps, and not while cleaning up."""
    if _first is not None and not _postponed and threading.current_thread() is threading.main_thread():
        raise KeyboardInterrupt


def forget() -> None:
    """Go on after a Ctrl-C that was meant for one step only; a SIGTERM, which ends the process, is raised again."""
    global _first
    if _number is signal.SIGTERM:
        raise_if_interrupted()
    _first = None


def stop_listening() -> None:
    """From now on a signal ends the process without a message: everything is done."""
    global _ended
    _ended = True


def _handle(number: int, _: FrameType | None) -> None:
    global _first, _number
    if _ended:
        _end_at_once("")
    now = time.monotonic()
    if _first is None:
        _first, _number = now, signal.SIGINT if number == signal.SIGINT else signal.SIGTERM
    elif _hint is not None:
        if number != signal.SIGINT or now - _first < SAME_SIGNAL_SECONDS:
            return
        _end_at_once(f"lorahydra: interrupted twice: ended at once{_hint()}\n")
    if not _postponed:
        raise KeyboardInterrupt


def _report_unraisable(lost: Any) -> None:
    """Report an exception that was lost, unless it is an interrupt, which is remembered."""
    if not (_first is not None and issubclass(lost.exc_type, KeyboardInterrupt)):
        sys.__unraisablehook__(lost)


def _end_at_once(line: str) -> None:
    # The next process closes what this one leaves open; worker processes notice its end.
    with suppress(Exception):
        sys.stdout.flush()
    with suppress(OSError):
        os.write(2, (f"\n{line}" if line and os.isatty(2) else line).encode())
    os._exit(EXIT_INTERRUPTED)
