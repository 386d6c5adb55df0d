"""A folder as a ZIP archive that is made while it is sent: nothing of it is written to disk or held in memory."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["zipped"]

CHUNK = 1 << 18


class _Outbox(list[bytes]):
    """What the archive has written and nobody has taken yet; `zipfile` asks for no more of a stream than this."""

    def write(self, data: bytes) -> int:
        self.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        pass

    close = flush

    def take(self) -> bytes:
        content = b"".join(self)
        self.clear()
        return content


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
                    yield outbox.take()
    yield outbox.take()
