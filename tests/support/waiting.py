"""Waiting for other processes and threads without a fixed time."""

from __future__ import annotations

import time
from collections.abc import Callable

SECONDS = 300.0
"""Longest wait for anything; the condition holds much earlier, unless the machine is very busy."""


def holds(condition: Callable[[], bool], seconds: float = SECONDS) -> bool:
    """Wait until a condition holds; false if that takes too long."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def wait_for(condition: Callable[[], bool], seconds: float = SECONDS) -> None:
    """Wait until a condition holds; the test fails if that takes too long."""
    assert holds(condition, seconds), "it did not happen"
