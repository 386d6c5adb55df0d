"""One answer for many who ask at the same time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

__all__ = ["Shared"]

SECONDS = 0.5
"""How old an answer may be, as it tells how long something has been running."""
MOST = 64
"""Answers that are kept."""

T = TypeVar("T")


class Shared(Generic[T]):
    """Keeps answers for as long as nothing has changed, and half a second at most; may be asked from any thread.

    Whoever asks while an answer is being made waits for it, so that a hundred watchers cost what one does.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[Hashable, tuple[int, float, T]] = {}

    def get(self, key: Hashable, version: Callable[[], int], make: Callable[[], T]) -> T:
        """The answer to a question.

        Args:
            key: The question.
            version: Tells another number after each change of what answers are made from.
            make: Makes the answer.
        """
        with self._lock:
            now, before = time.monotonic(), version()
            known = self._known.get(key)
            if known is not None and known[0] == before and now - known[1] < SECONDS:
                return known[2]
            answer = make()
            if len(self._known) >= MOST:
                self._known.clear()
            # A change while it was made has given another number: the next one to ask gets a new answer.
            self._known[key] = before, now, answer
            return answer
