"""Copies of what MLflow gets, for people who watch it elsewhere: `tracking.mirrors=[tensorboard,wandb]`.

A mirror is written from the same queue as MLflow's run, at its own pace, so it does not wait for a store that cannot
be reached. It gets metrics and params; tables, files and traces are in MLflow only. A mirror that fails is left out
with a warning, and the trial goes on.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from lorahydra.errors import ConfigError, reason
from lorahydra.tracking.operations import Operation
from lorahydra.tracking.spool import Header, Spool

__all__ = ["Mirror", "Mirrors", "check_mirrors"]

logger = logging.getLogger(__name__)

MIRRORS = {
    "tensorboard": "lorahydra.tracking.mirrors.event_files:EventFiles",
    "wandb": "lorahydra.tracking.mirrors.offline_wandb:OfflineWandb",
}
"""The class of each mirror; its module imports the library, which is an extra with the mirror's name."""


class Mirror(Protocol):
    """One copy of a run."""

    def __init__(self, folder: Path, header: Header) -> None:
        """Open the copy of the run `header` below `folder`, the trial's output folder."""

    def write(self, operation: Operation) -> None:
        """Write one operation of the queue; kinds that the mirror does not show are ignored."""

    def close(self) -> None:
        """Write what is held in memory."""


def check_mirrors(names: Sequence[str]) -> None:
    """Find out that the mirrors can be written.

    Raises:
        ConfigError: There is no mirror with this name, or its library is not installed.
    """
    for name in names:
        if name not in MIRRORS:
            raise ConfigError(f"tracking.mirrors: {name!r} is not one of {', '.join(MIRRORS)}")
        try:
            _load(name)
        except ImportError as error:
            raise ConfigError(f"tracking.mirrors={name} needs {name}: pip install 'lorahydra[{name}]'") from error


def _load(name: str) -> type[Mirror]:
    module, _, attribute = MIRRORS[name].partition(":")
    found: type[Mirror] = getattr(importlib.import_module(module), attribute)
    return found


class Mirrors:
    """All mirrors of one run; used by one thread. They open with the first operation.

    Args:
        spool: The queue of the run; what was mirrored is remembered there.
        header: Which run it is, and the names of its mirrors.
    """

    def __init__(self, spool: Spool, header: Header) -> None:
        self._spool = spool
        self._header = header
        self._waiting = list(dict.fromkeys(header.mirrors))
        self._open: dict[str, Mirror] = {}

    def step(self) -> None:
        """Write what the queue has gained."""
        while (self._waiting or self._open) and (entries := self._spool.unmirrored()):
            for name in self._waiting:
                with self._left_out_if_it_fails(name):
                    self._open[name] = _load(name)(self._spool.folder.parent.parent, self._header)
            self._waiting = []
            for entry in entries:
                for name in list(self._open):
                    with self._left_out_if_it_fails(name):
                        self._open[name].write(entry.operation)
            self._spool.advance_mirrors(entries[-1].end)

    def close(self) -> None:
        """Write what the queue has gained since, and close them; safe to call twice."""
        self.step()
        for name in list(self._open):
            with self._left_out_if_it_fails(name):
                self._open[name].close()
        self._open.clear()

    @contextlib.contextmanager
    def _left_out_if_it_fails(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # Foreign libraries raise errors that have no common class, and a copy must not end a trial.
            logger.warning("The copy of run %s for %s is not complete: %s", self._header.run_id, name, reason(error))
            self._open.pop(name, None)
