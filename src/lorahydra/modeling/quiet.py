"""Keeps the noise of transformers and huggingface_hub off the terminal; real warnings stay."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["no_hub_advice", "no_loading_report", "no_progress_bars"]


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Turn the libraries' own progress bars off inside the block: they would break up ours."""
    from transformers.utils.logging import (
        disable_progress_bar,
        enable_progress_bar,
        is_progress_bar_enabled,
    )

    was_on = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            enable_progress_bar()


@contextmanager
def no_hub_advice() -> Iterator[None]:
    """Leave out what huggingface_hub remarks while it downloads (hints to log in, …); errors are raised."""
    with _errors_only("huggingface_hub"):
        yield


@contextmanager
def no_loading_report() -> Iterator[None]:
    """Leave out transformers' table of weights that do not fit, which whoever loads them says in one line.

    With it goes a remark on layers that are not spread over several GPUs.
    """
    with _errors_only("transformers.modeling_utils"), _errors_only("transformers.distributed.tensor_parallel"):
        yield


@contextmanager
def _errors_only(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
