"""Keeping Optuna's remarks about itself from users."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from optuna.exceptions import ExperimentalWarning

__all__ = ["quietly"]


@contextmanager
def quietly() -> Iterator[None]:
    """Say nothing of what Optuna calls experimental: users did not ask for it by that name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield
