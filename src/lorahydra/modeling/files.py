"""What saving weights needs beside `storage`: permissions that follow the umask, and the disk's errors."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["disk_errors", "follow_umask"]


@contextmanager
def disk_errors() -> Iterator[None]:
    """Raise an `OSError` where the safetensors library met one: its own error hides what the disk said."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1]))) from error


def follow_umask(folder: Path) -> None:
    """Give `folder` and all in it the permissions that newly made files and folders have.

    Temporary folders and the safetensors library make things private to the user, which is wrong for a cache
    or an adapter that others should read.
    """
    # To read the umask is to change it for the whole process, so a folder and a file are made to see it.
    probe = folder / ".permissions"
    probe.mkdir()
    folder_mode = probe.stat().st_mode & 0o777
    probe.rmdir()
    probe.touch()
    file_mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for path in [folder, *folder.rglob("*")]:
        path.chmod(folder_mode if path.is_dir() else file_mode)
