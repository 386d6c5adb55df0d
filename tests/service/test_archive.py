from __future__ import annotations

import io
import zipfile
from pathlib import Path

from lorahydra.service.archive import CHUNK, zipped


def test_files_and_contents_below_one_folder(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.write_bytes(bytes(range(256)) * (CHUNK // 100))
    parts = list(zipped({"weights": weights, "README.md": b"# Mine"}, "mine"))
    assert max(map(len, parts)) < 2 * CHUNK, "it is sent while it is made"
    archive = zipfile.ZipFile(io.BytesIO(b"".join(parts)))
    assert archive.testzip() is None
    contents = {name: archive.read(name) for name in archive.namelist()}
    assert contents == {"mine/README.md": b"# Mine", "mine/weights": weights.read_bytes()}
