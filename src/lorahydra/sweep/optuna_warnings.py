"""Hides Optuna's warnings about experimental features from users."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from optuna.exceptions import ExperimentalWarning

__all__ = ["quietly"]


@contextmanager
def quietly() -> Iterator[None]:
    """Hide the warnings about experimental features: a user did not ask for a feature of Optuna by that name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield
