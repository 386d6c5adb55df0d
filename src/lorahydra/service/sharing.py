"""One answer for all who ask the same question at the same time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar, cast

__all__ = ["Shared"]

SECONDS = 0.5
"""Largest age of an answer: it may tell how long something has been running."""
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
        """The answer to a question.

        Args:
            key: The question.
            version: Returns another number after each change of what answers are made from.
            make: Makes the answer.
        """
        with self._lock:
            now, before = time.monotonic(), version()
            kept_version, made, answer = self._answers.get(key, (None, 0.0, None))
            if kept_version == before and now - made < SECONDS:
                return cast("T", answer)
            answer = make()
            if len(self._answers) >= MOST:
                self._answers.clear()
            # A change meanwhile has given another number, so that the next one to ask gets a new answer.
            self._answers[key] = before, now, answer
            return answer
