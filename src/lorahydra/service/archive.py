"""A folder as a ZIP archive that is made while it is sent: nothing of it is written to disk or held in memory."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["zipped"]

CHUNK = 1 << 18


class _Outbox(io.RawIOBase):
    """What the archive has written and nobody has taken yet."""

    content = b""

    def write(self, data: Any) -> int:
        self.content += data
        return len(data)


def zipped(folder: Path, root: str) -> Iterator[bytes]:
    """The regular files of a folder, by name, below `root` in the archive; stored, because weights do not compress."""
    outbox = _Outbox()
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    with zipfile.ZipFile(outbox, "w", zipfile.ZIP_STORED) as archive:
        for path in files:
            entry = zipfile.ZipInfo.from_file(path, f"{root}/{path.relative_to(folder).as_posix()}")
            with path.open("rb") as source, archive.open(entry, "w") as target:
                while chunk := source.read(CHUNK):
                    target.write(chunk)
                    yield outbox.content
                    outbox.content = b""
    yield outbox.content
