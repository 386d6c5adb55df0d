"""Progress on the terminal: a moving bar for a person, plain lines if the output goes to a file.

```python
progress = Progress()
with progress.task("Training", total=24) as advance:
    advance(1, "loss 1.32")
```
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from lorahydra.utils.interrupts import raise_if_interrupted

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Advance", "Progress", "console"]

logger = logging.getLogger(__name__)

Advance = Callable[[int, str], None]
"""Called with how many units were done and a short note (may be empty)."""

SECONDS_BETWEEN_LINES = 15.0
LOG_WIDTH = 120
"""Columns of tables that go to a file, which has no width."""


def console() -> Console:
    """Where tables are printed: the terminal or notebook as it is, or a log of a fixed width."""
    from rich.console import Console

    usual = Console()
    if usual.is_terminal or usual.is_jupyter or "COLUMNS" in os.environ:
        return usual
    return Console(width=LOG_WIDTH)


def _in_notebook() -> bool:
    """Whether a notebook shows what is printed, and has the widgets that a moving bar needs there."""
    # A notebook has imported it.
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell" and find_spec("ipywidgets") is not None


@contextmanager
def _logging_above_the_bar() -> Iterator[None]:
    """Print log lines above the bar, which would otherwise be drawn over them."""
    # While a bar is live, rich replaces these streams by others that print above it.
    live = {sys.__stdout__: sys.stdout, sys.__stderr__: sys.stderr}
    moved = []
    for handler in (*logging.getLogger().handlers, *logging.getLogger("lorahydra").handlers):
        stream = getattr(handler, "stream", None)
        if isinstance(handler, logging.StreamHandler) and stream in live and stream is not None and stream.isatty():
            moved.append((handler, stream))
            handler.setStream(live[stream])
    try:
        yield
    finally:
        for handler, stream in moved:
            handler.setStream(stream)


class Progress:
    """Shows the progress of one task at a time.

    Args:
        live: Draw a bar; by default when stderr is a terminal, or a notebook that has ipywidgets. Otherwise a plain
            log line is written at most every 15 seconds, so that a log file stays readable.
    """

    def __init__(self, live: bool | None = None) -> None:
        self.live = (sys.stderr.isatty() or _in_notebook()) if live is None else live

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        """Show one task of `total` units.

        Yields:
            The function that advances it. It also raises an interrupt that was lost in the work that it counts.
        """
        with self._bar(description, total) if self.live else self._lines(description, total) as show:

            def advance(units: int, note: str) -> None:
                raise_if_interrupted()
                show(units, note)

            yield advance

    @contextmanager
    def _bar(self, description: str, total: int) -> Iterator[Advance]:
        from rich import progress as rich
        from rich.console import Console

        columns = (
            *(rich.TextColumn("{task.description}"), rich.BarColumn(), rich.MofNCompleteColumn()),
            *(rich.TimeElapsedColumn(), rich.TimeRemainingColumn(), rich.TextColumn("{task.fields[note]}")),
        )
        with rich.Progress(*columns, console=Console(stderr=True), transient=True) as bar, _logging_above_the_bar():
            task = bar.add_task(description, total=total, note="")
            yield lambda done, note: bar.update(task, advance=done, note=note)

    @contextmanager
    def _lines(self, description: str, total: int) -> Iterator[Advance]:
        done, last = 0, time.monotonic()

        def advance(units: int, note: str) -> None:
            nonlocal done, last
            done += units
            if time.monotonic() - last >= SECONDS_BETWEEN_LINES and done < total:
                last = time.monotonic()
                logger.info("%s: %d of %d%s", description, done, total, f", {note}" if note else "")

        yield advance
