"""Sending what runs could not send because their store could not be reached at the end, or their process died."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from lorahydra.errors import NotRecordedError, TrackingError
from lorahydra.names import State
from lorahydra.tracking import operations
from lorahydra.tracking.address import resolve
from lorahydra.tracking.delivery import Delivery
from lorahydra.tracking.mirrors import Mirrors
from lorahydra.tracking.spool import FOLDER, Header, Spool, SpoolBusyError, read_header
from lorahydra.tracking.store import active_run, connect, talking_to_artifacts
from lorahydra.utils.databases import shown

__all__ = ["SyncResult", "SyncedRun", "find_unsent", "sync"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SyncedRun:
    """One run that is complete in its store now."""

    run_id: str
    run_name: str
    store: str
    """Address of the store, without a password."""
    entries: int
    """Number of things that were sent."""
    interrupted: bool
    """The process died before the end of the run, and no other ended it, so it was closed as interrupted."""


@dataclass(frozen=True)
class SyncResult:
    """What `sync` did."""

    runs: list[SyncedRun] = field(default_factory=list)
    busy: list[Path] = field(default_factory=list)
    """Output folders of runs that are still going on; they send by themselves."""


def find_unsent(root: Path) -> list[Path]:
    """Folders of unsent runs in an output folder, or anywhere below it, oldest first."""
    return sorted(_spools(root), key=_age)


def sync(output_dir: Path, uri: str | None = None) -> SyncResult:
    """Send what the runs of an output folder (or of all those below it) left unsent, with its original times.

    It may be repeated at any time: nothing is sent twice.

    Args:
        output_dir: A trial's output folder, or one that holds several.
        uri: Address of the store, if it has moved since.

    Raises:
        OutputError: The folder cannot be written.
    """
    result, taken, alive = SyncResult(), [], set()
    with ExitStack() as held:
        for folder in find_unsent(output_dir):
            try:
                if (spool := _take(folder)) is not None:
                    held.callback(spool.close)
                    taken.append(spool)
            except SpoolBusyError:
                result.busy.append(folder.parent.parent)
                alive |= {header.run_id for header in [read_header(folder)] if header is not None}
        for spool in taken:
            header = read_header(spool.folder)
            if header is None:
                raise TrackingError(f"{spool.folder / 'run.json'} is damaged: delete {spool.folder} to forget the run")
            result.runs.append(_send(spool, header, resolve(uri or header.uri), is_alive=header.run_id in alive))
            spool.remove()
    return result


def _take(folder: Path) -> Spool | None:
    """The spool; None if its process has sent everything and deleted it since it was listed."""
    spool = Spool.open(folder)
    if (folder / "run.json").is_file():
        return spool
    spool.remove()  # taking the lock has made the folder again
    return None


def _send(spool: Spool, header: Header, uri: str, *, is_alive: bool) -> SyncedRun:
    """Send a spool to its run in the store at the resolved `uri`; another process may still be recording the run."""
    client = connect(uri, create=False)
    try:
        active_run(client, header.run_id, header.run_name)
    except NotRecordedError as error:
        raise TrackingError(f"{error}; delete {spool.folder} to forget the run") from error
    Mirrors(spool, header).close()
    delivery = Delivery(client, header.run_id, spool)
    last = spool.last()
    died = last is None or last["op"] not in operations.ENDS
    entries = 0
    with talking_to_artifacts(uri):
        while count := delivery.step():
            entries += count
        # A run may have several processes: another one may have ended it properly, or may still do so.
        interrupted = died and not is_alive and client.get_run(header.run_id).info.status == "RUNNING"
        if interrupted:
            end = (header.started if last is None else last.get("time", header.started)) - header.pause
            for operation in operations.ending(State.INTERRUPTED, end_time=end):
                delivery.send_or_leave_out(operation)
    return SyncedRun(header.run_id, header.run_name, shown(uri), entries, interrupted)


def _age(folder: Path) -> float:
    try:
        return (folder / "run.json").stat().st_mtime
    except OSError:  # its process has just sent everything
        return 0.0


def _spools(root: Path) -> Iterator[Path]:
    for path, folders, _ in os.walk(root):
        here = Path(path)
        if here.name == FOLDER:
            yield from (here / name for name in folders if (here / name / "run.json").is_file())
            folders.clear()
