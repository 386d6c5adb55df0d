"""How often something may be done."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque

from lorahydra.service.errors import TooManyError

__all__ = ["Allowance", "Allowances"]

MINUTE = 60.0
MOST_CALLERS = 10_000


class Allowance:
    """Allows something a number of times per minute; `what` names it in messages."""

    def __init__(self, per_minute: int, what: str) -> None:
        self._per_minute = per_minute
        self._what = what
        self._times: deque[float] = deque()
        self._lock = threading.Lock()

    def take(self, *, count: bool = True) -> None:
        """Count one time; without `count`, only check that it would be allowed.

        Raises:
            TooManyError: There were as many as allowed in the last minute.
        """
        now = time.monotonic()
        with self._lock:
            while self._times and now - self._times[0] >= MINUTE:
                self._times.popleft()
            if len(self._times) >= self._per_minute:
                wait = MINUTE - (now - self._times[0])
                raise TooManyError(f"more than {self._per_minute} {self._what} in a minute: wait {wait:.0f} s", wait)
            if count:
                self._times.append(now)


class Allowances:
    """An `Allowance` for each caller; of those who have not come for the longest time, too many are forgotten."""

    def __init__(self, per_minute: int, what: str) -> None:
        self._per_minute = per_minute
        self._what = what
        self._callers: OrderedDict[str, Allowance] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, caller: str) -> Allowance:
        """The allowance of one of them."""
        with self._lock:
            allowance = self._callers.setdefault(caller, Allowance(self._per_minute, self._what))
            self._callers.move_to_end(caller)
            if len(self._callers) > MOST_CALLERS:
                self._callers.popitem(last=False)
        return allowance
