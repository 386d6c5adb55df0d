"""Waiting for a store that cannot be reached: `tracking.retry_seconds`, wherever a trial or a study needs the store.

A run does not wait while it goes on: what it logs waits in its queue on disk.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

from lorahydra.config.schema import TrackingConfig
from lorahydra.errors import StoreUnavailableError
from lorahydra.utils.interrupts import interrupted

__all__ = ["patient", "patiently"]

logger = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 5.0
"""Seconds between two attempts; each pause is twice as long as the one before."""


Result = TypeVar("Result")
Parameters = ParamSpec("Parameters")


def patiently(config: TrackingConfig, action: Callable[[], Result]) -> Result:
    """The result of `action`, which is repeated for `config.retry_seconds` while it raises `StoreUnavailableError`.

    The action must be harmless when it is repeated.
    """
    until = time.monotonic() + config.retry_seconds
    pause, waits = FIRST_PAUSE, False
    while True:
        try:
            result = action()
        except StoreUnavailableError as error:
            left = until - time.monotonic()
            if left <= 0 or interrupted():
                raise
            if not waits:
                logger.warning("%s; waiting for it, up to %.0f s (tracking.retry_seconds)", error, left)
            waits = True
            time.sleep(min(pause, left))
            pause = min(2 * pause, LONGEST_PAUSE)
        else:
            if waits:
                logger.info("The MLflow store is back")
            return result


def patient(
    function: Callable[Concatenate[TrackingConfig, Parameters], Result],
) -> Callable[Concatenate[TrackingConfig, Parameters], Result]:
    """Make a function that reads or writes a store, and may be repeated, wait for a store that cannot be reached."""

    @functools.wraps(function)
    def waiting(config: TrackingConfig, /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        return patiently(config, lambda: function(config, *args, **kwargs))

    return waiting
