"""Configs of jobs, composed in the server: Hydra keeps them in globals, so one thread composes at a time."""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence

from lorahydra.config.compose import compose
from lorahydra.config.schema import ExperimentConfig

__all__ = ["composed", "without"]

_lock = threading.Lock()
_compose = functools.lru_cache(maxsize=256)(compose)


def composed(overrides: Sequence[str]) -> ExperimentConfig:
    """The experiment that overrides describe; treat it as read-only.

    Raises:
        ConfigError: They are not valid.
    """
    with _lock:
        # How a study is run is not part of its config.
        return _compose(tuple(override for override in overrides if not override.startswith(("hydra.", "hydra/"))))


def without(overrides: Sequence[str], *keys: str) -> list[str]:
    """The overrides except those of some keys."""
    return [override for override in overrides if override.partition("=")[0] not in keys]
