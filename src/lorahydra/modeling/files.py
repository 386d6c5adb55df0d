"""What saving models needs beside `storage`: the disk's errors, and tokenizers without traces of this machine."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["disk_errors", "save_tokenizer"]

TOKENIZER_CONFIG = "tokenizer_config.json"


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


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer of transformers to `folder`.

    Raises:
        OSError: `folder` cannot be written.
    """
    tokenizer.save_pretrained(folder)
    # How this tokenizer was read is written too; for whoever loads it from here it would be wrong.
    settings = json.loads((folder / TOKENIZER_CONFIG).read_text("utf-8"))
    for key in ("is_local", "local_files_only", "name_or_path"):
        settings.pop(key, None)
    (folder / TOKENIZER_CONFIG).write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", "utf-8")
