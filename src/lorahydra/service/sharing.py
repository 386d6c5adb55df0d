"""One answer for all who ask the same question at the same time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

__all__ = ["Shared"]

SECONDS = 0.5
"""Largest age of an answer in seconds: an answer may say how long something has been running."""
MOST = 64
"""Number of answers that are kept."""

T = TypeVar("T")


class Shared(Generic[T]):
    """Keeps answers for half a second, unless something changes earlier; may be used from any thread.

    Whoever asks while an answer is being made waits for it, so that a hundred watchers cost no more than one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answers: dict[Hashable, tuple[int, float, T]] = {}

    def get(self, key: Hashable, version: Callable[[], int], make: Callable[[], T]) -> T:
        """The answer to the question `key`; `version` returns another number after each change of what it is about."""
        with self._lock:
            now, before = time.monotonic(), version()
            kept = self._answers.get(key)
            if kept is not None and kept[0] == before and now - kept[1] < SECONDS:
                return kept[2]
            answer = make()
            if len(self._answers) >= MOST:
                self._answers.clear()
            # If something has changed meanwhile, `version` differs the next time, and a new answer is made.
            self._answers[key] = before, now, answer
            return answer
