"""How often something may be done."""

from __future__ import annotations

import threading
import time
from collections import deque

from lorahydra.service.errors import TooManyError

__all__ = ["Allowance"]

MINUTE = 60.0


class Allowance:
    """So many times in any minute, for all callers together.

    Args:
        per_minute: How many times.
        what: For the message.
    """

    def __init__(self, per_minute: int, what: str) -> None:
        self._per_minute = per_minute
        self._what = what
        self._times: deque[float] = deque()
        self._lock = threading.Lock()

    def take(self) -> None:
        """Count one.

        Raises:
            TooManyError: There were as many as allowed in the last minute.
        """
        now = time.monotonic()
        with self._lock:
            self._check(now)
            self._times.append(now)

    def check(self) -> None:
        """Count none.

        Raises:
            TooManyError: One more would be too many.
        """
        with self._lock:
            self._check(time.monotonic())

    def _check(self, now: float) -> None:
        while self._times and now - self._times[0] >= MINUTE:
            self._times.popleft()
        if len(self._times) >= self._per_minute:
            wait = MINUTE - (now - self._times[0])
            raise TooManyError(f"more than {self._per_minute} {self._what} in a minute: wait {wait:.0f} s", wait)
