"""Files as a ZIP archive that is made while it is sent: nothing of it is written to disk or held in memory."""

from __future__ import annotations

import io
import time
import zipfile
from collections.abc import Iterator, Mapping
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


def zipped(files: Mapping[str, bytes | Path], root: str) -> Iterator[bytes]:
    """Files by name, with their content or where it is, below `root`; stored, because weights do not compress."""
    outbox = _Outbox()
    with zipfile.ZipFile(outbox, "w", zipfile.ZIP_STORED) as archive:
        for name, content in sorted(files.items()):
            if isinstance(content, bytes):
                archive.writestr(zipfile.ZipInfo(f"{root}/{name}", time.localtime()[:6]), content)
                continue
            entry = zipfile.ZipInfo.from_file(content, f"{root}/{name}")
            with content.open("rb") as source, archive.open(entry, "w") as target:
                while chunk := source.read(CHUNK):
                    target.write(chunk)
                    yield outbox.content
                    outbox.content = b""
    yield outbox.content
