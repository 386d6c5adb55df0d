"""What saving weights needs beside `storage`: the disk's errors."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["disk_errors"]


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
