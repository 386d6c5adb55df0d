"""Configs of jobs, composed in the server: Hydra keeps them in globals, so one thread at a time."""

from __future__ import annotations

import functools
import threading

from lorahydra.config.compose import compose
from lorahydra.config.schema import ExperimentConfig

__all__ = ["composed"]

_lock = threading.Lock()


def composed(overrides: tuple[str, ...]) -> ExperimentConfig:
    """The experiment that these overrides mean; treat it as read-only.

    Raises:
        ConfigError: They mean none.
    """
    with _lock:
        # How a study is run is not part of its config.
        return _composed(tuple(override for override in overrides if not override.startswith(("hydra.", "hydra/"))))


@functools.lru_cache(maxsize=256)
def _composed(overrides: tuple[str, ...]) -> ExperimentConfig:
    return compose(overrides)
