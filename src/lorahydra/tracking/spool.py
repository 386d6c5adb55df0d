"""The queue on disk between a run and its MLflow store.

One folder per run, `OUTPUT_DIR/tracking/run-…/`, readable by its owner only (a store's address may hold a
password):

| file | holds |
|---|---|
| `run.json` | which run of which store this is |
| `queue.jsonl` | one operation a line, in the order they were logged |
| `sent` | how many bytes of the queue the store has confirmed |
| `mirrored` | how many bytes of the queue its mirrors have |
| `files/` | copies of artifacts and texts that wait |
| `.lock` | held by the process that owns the spool; a crash frees it |

A line is written with one `write` call before anything is sent, so a `kill -9` loses at most the line being
written. The folder is deleted once everything was sent.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lorahydra.errors import OutputError
from lorahydra.tracking.operations import Operation, encode
from lorahydra.utils.files import atomic_file, writing

__all__ = ["FOLDER", "Entry", "Header", "Spool", "SpoolBusyError", "read_header"]

logger = logging.getLogger(__name__)

FOLDER = "tracking"
"""Name of the folder in a trial's output folder that holds its spools."""
READ_BYTES = 1_000_000


class SpoolBusyError(Exception):
    """The process that owns the spool is alive."""


@dataclass(frozen=True)
class Header:
    """Which run of which store a spool belongs to."""

    uri: str
    run_id: str
    run_name: str
    started: int
    """Milliseconds since the epoch."""
    pause: int = 0
    """Milliseconds for which the run had ended before it was opened again: they are not a part of its duration."""
    mirrors: list[str] = field(default_factory=list)
    """Names of its mirrors (`lorahydra.tracking.mirrors`)."""
    study: str | None = None
    """Name of the study that it is a trial of."""


def read_header(folder: Path) -> Header | None:
    """Which run the spool in `folder` belongs to, whichever process holds it; None if that cannot be read."""
    try:
        return Header(**json.loads((folder / "run.json").read_text(encoding="ascii")))
    except (OSError, ValueError, TypeError):
        return None


@dataclass(frozen=True)
class Entry:
    """One operation and the offset in the queue where it ends."""

    operation: Operation
    end: int


class Spool:
    """A queue of operations that survives its process; made by `create` or `open`.

    `append` may be called from any thread; `entries` and `advance` from one thread at a time.
    """

    def __init__(self, folder: Path) -> None:
        from filelock import FileLock, Timeout

        self.folder = folder
        self._lock = FileLock(folder / ".lock", thread_local=False)
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise SpoolBusyError(str(folder)) from error
        self._queue = folder / "queue.jsonl"
        self._mutex = threading.Lock()
        self._handle = os.open(self._queue, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._size = os.fstat(self._handle).st_size
        self._sent, self._mirrored = self._read_offset("sent"), self._read_offset("mirrored")

    @classmethod
    def create(cls, output_dir: Path) -> Spool:
        """Make an empty spool in the output folder of a trial."""
        parent = output_dir / FOLDER
        with writing(parent):
            parent.mkdir(parents=True, exist_ok=True)
            return cls(Path(tempfile.mkdtemp(prefix="run-", dir=parent)))

    @classmethod
    def open(cls, folder: Path) -> Spool:
        """Take over the spool that a dead process left, or that a finished one could not send.

        Raises:
            SpoolBusyError: Its process is alive.
        """
        with writing(folder):
            return cls(folder)

    def write_header(self, header: Header) -> None:
        """Say which run this is; from now on the spool is one that `sync` can send."""
        with atomic_file(self.folder / "run.json") as temporary:
            temporary.write_text(encode(asdict(header)), encoding="ascii")

    def append(self, operation: Operation) -> None:
        """Add one operation durably: it survives the death of this process.

        Raises:
            OutputError: The disk is full or gone; the queue is as it was before.
        """
        line = f"{encode(operation)}\n".encode("ascii")
        with self._mutex, writing(self._queue):
            try:
                view = memoryview(line)
                while view:
                    view = view[os.write(self._handle, view) :]
            except OSError:
                # Half a line would damage the next one.
                os.ftruncate(self._handle, self._size)
                raise
            self._size += len(line)

    def entries(self) -> list[Entry]:
        """The next operations that are not sent yet, oldest first; empty if there are none.

        The end of a torn line (the process died while writing it) never comes.
        """
        return self._entries(self._sent)

    def unmirrored(self) -> list[Entry]:
        """The same of those that the mirrors do not have."""
        return self._entries(self._mirrored)

    def _entries(self, offset: int) -> list[Entry]:
        if self._handle < 0:  # a call that hung returned after the spool was closed
            return []
        data = os.pread(self._handle, READ_BYTES, offset)
        while b"\n" not in data and len(data) < self._size - offset:
            data += os.pread(self._handle, READ_BYTES, offset + len(data))
        return list(_parse(data, offset))

    def advance(self, end: int) -> None:
        """Remember that the store has confirmed everything up to `end`."""
        if self._handle < 0:  # a call that hung returned after the spool was closed; `sync` may have it now
            return
        self._sent = end
        # Where that fails (the disk is full), it is sent again, which changes nothing in the store.
        self._write_offset("sent", end)

    def advance_mirrors(self, end: int) -> None:
        """Remember that the mirrors have everything up to `end`."""
        self._mirrored = end
        self._write_offset("mirrored", end)

    def _write_offset(self, name: str, end: int) -> None:
        with contextlib.suppress(OutputError), atomic_file(self.folder / name) as temporary:
            temporary.write_text(str(end), encoding="ascii")

    def unsent(self) -> int:
        """Number of operations that are not sent yet."""
        return self._queue.read_bytes().count(b"\n", self._sent)

    def last(self) -> Operation | None:
        """The newest operation, sent or not."""
        complete, ended, _torn = self._queue.read_bytes().rpartition(b"\n")
        return next(_parse(complete.rpartition(b"\n")[2] + ended, 0)).operation if ended else None

    def has_more(self) -> bool:
        """Whether operations wait; cheap, for the sending thread."""
        return self._size > self._sent

    def reserve(self, name: str) -> Path:
        """A free path inside the spool whose last part is that of the artifact path `name`."""
        files = self.folder / "files"
        files.mkdir(exist_ok=True)
        return Path(tempfile.mkdtemp(dir=files), Path(name).name)

    def forget(self, operations: Iterable[Operation]) -> None:
        """Drop the copies of artifacts that were sent."""
        for operation in operations:
            if owned := operation.get("owned"):
                shutil.rmtree((self.folder / owned).parent, ignore_errors=True)

    def path_of(self, operation: Operation) -> Path:
        """Where the content of an artifact operation lies, also after the output folder was moved."""
        if "owned" in operation:
            return self.folder / str(operation["owned"])
        return self.folder.parent.parent / str(operation["kept"])

    def close(self) -> None:
        """Let go of the folder and keep what it holds; safe to call twice."""
        if self._handle >= 0:
            with contextlib.suppress(OSError):
                os.fsync(self._handle)
            handle, self._handle = self._handle, -1
            os.close(handle)
        self._lock.release()

    def remove(self) -> None:
        """Delete the folder: everything was sent."""
        # Deleted before the lock is released, so that no process takes over a spool that is about to vanish.
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.folder.parent.rmdir()  # only when this was the last spool
        self.close()

    def _read_offset(self, name: str) -> int:
        try:
            return int((self.folder / name).read_text(encoding="ascii"))
        except (OSError, ValueError):
            return 0


def _parse(data: bytes, offset: int) -> Iterator[Entry]:
    *lines, _unfinished = data.split(b"\n")
    for line in lines:
        offset += len(line) + 1
        try:
            operation = json.loads(line)
        except ValueError:
            # Only a faulty disk does this, and the rest of the queue is still worth sending.
            logger.warning("A line of the tracking queue is damaged and was left out: %.80r", line)
            operation = {"op": "damaged"}
        yield Entry(operation, offset)
