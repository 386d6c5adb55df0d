"""Wrappers for the libraries of Hugging Face: less noise on the terminal, and errors of one line."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lorahydra.errors import ModelError, library_errors, reason

__all__ = [
    "disk_errors",
    "errors_only",
    "loading",
    "no_hub_advice",
    "no_loading_report",
    "no_progress_bars",
    "save_tokenizer",
]

TOKENIZER_CONFIG = "tokenizer_config.json"


@contextmanager
def loading(what: str) -> Iterator[None]:
    """Turn any error that a library raises on a broken file into a `ModelError` of one line.

    The line begins with `what`, for example `the tokenizer of X cannot be read`.
    """
    with library_errors(lambda error: ModelError(f"{what}: {reason(error)}")):
        yield


@contextmanager
def disk_errors() -> Iterator[None]:
    """Raise an `OSError` that says why, if safetensors or numpy met one: their own errors hide the reason."""
    from safetensors import SafetensorError

    try:
        yield
    except OSError as error:
        if error.errno is None and re.fullmatch(r"\d+ requested and \d+ written", str(error)):  # of `ndarray.tofile`
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1]))) from error


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer of transformers to `folder`, without traces of this machine."""
    tokenizer.save_pretrained(folder)
    # transformers also writes how this tokenizer was read, which would be wrong when it is loaded from here.
    settings = json.loads((folder / TOKENIZER_CONFIG).read_text("utf-8"))
    for key in ("is_local", "local_files_only", "name_or_path"):
        settings.pop(key, None)
    (folder / TOKENIZER_CONFIG).write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", "utf-8")


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Turn off the libraries' progress bars inside the block, because they would break up ours."""
    from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

    was_on = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            enable_progress_bar()


@contextmanager
def no_hub_advice() -> Iterator[None]:
    """Hide huggingface_hub's remarks during a download (hints to log in, …); errors are still raised."""
    with errors_only("huggingface_hub"):
        yield


@contextmanager
def no_loading_report() -> Iterator[None]:
    """Hide transformers' table of weights that do not fit, which the caller reports in one line.

    A remark on layers that are not spread over several GPUs goes with it.
    """
    with errors_only("transformers.modeling_utils"), errors_only("transformers.distributed.tensor_parallel"):
        yield


@contextmanager
def errors_only(name: str) -> Iterator[None]:
    """Hide what a library logs below the level of errors inside the block."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
