"""A folder as a ZIP archive, made while it is sent: nothing is written to disk or held in memory."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["zipped"]

CHUNK = 1 << 18


class _Outbox(io.RawIOBase):
    """What the archive writes, until it is taken."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self._parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        """Everything since the last time."""
        content, self._parts = b"".join(self._parts), []
        return content


def zipped(folder: Path, root: str) -> Iterator[bytes]:
    """The regular files of a folder, by name, below `root` in the archive; weights do not get smaller, so none is."""
    outbox = _Outbox()
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    with zipfile.ZipFile(outbox, "w", zipfile.ZIP_STORED) as archive:
        for path in files:
            entry = zipfile.ZipInfo.from_file(path, f"{root}/{path.relative_to(folder).as_posix()}")
            with path.open("rb") as source, archive.open(entry, "w") as target:
                while chunk := source.read(CHUNK):
                    target.write(chunk)
                    yield outbox.take()
    yield outbox.take()
