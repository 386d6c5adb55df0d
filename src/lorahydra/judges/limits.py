"""How fast and for how much money a judge may be asked; shared by all threads of a process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from lorahydra.config.judge import JudgeConfig
from lorahydra.errors import JudgeBudgetError
from lorahydra.judges.base import JudgePrompt, JudgeReply

__all__ = ["Budget", "Purse", "RateLimiter"]

MILLION = 1_000_000
CHARACTERS_PER_TOKEN = 2
"""Few, so that a cost is estimated too high rather than too low: Russian has about 2.5, English about 4."""


class RateLimiter:
    """Limits calls by number and rate, and holds them back when the service asks for it."""

    def __init__(self, config: JudgeConfig) -> None:
        self._interval = 60 / config.requests_per_minute if config.requests_per_minute else 0.0
        self._slots = threading.BoundedSemaphore(config.concurrency)
        self._lock = threading.Lock()
        self._next = self._paused_until = 0.0

    @contextmanager
    def slot(self, stop: threading.Event) -> Iterator[None]:
        """Wait until a call may begin; do not wait once `stop` is set."""
        with self._slots:
            start = self._place()
            while (left := start - time.monotonic()) > 0 and not stop.wait(left):
                if start < self._paused_until:  # since it got its place
                    start = self._place()
            yield

    def _place(self) -> float:
        """When the next call may begin; the one after it begins later."""
        with self._lock:
            start = max(self._next, time.monotonic())
            self._next = start + self._interval
            return start

    def pause(self, seconds: float) -> None:
        """Begin no call for that time."""
        with self._lock:
            self._paused_until = max(self._paused_until, time.monotonic() + seconds)
            self._next = max(self._next, self._paused_until)


class Purse:
    """The money of `judge.max_cost`; the judges of a panel share one."""

    def __init__(self, limit: float | None) -> None:
        self._limit = limit
        self._changed = threading.Condition()
        self._reserved = 0.0
        self.spent = 0.0
        """Cost of all replies so far."""

    def reserve(self, most: float) -> None:
        """Set an amount aside; wait for running calls if it depends on their cost.

        Raises:
            JudgeBudgetError: Less than that is left.
        """
        with self._changed:
            if self._limit is not None:
                while self.spent + self._reserved + most > self._limit:
                    if not self._reserved:
                        raise JudgeBudgetError(
                            f"judge.max_cost={self._limit} is used up ({self.spent:.4f} spent): raise it to go on"
                        )
                    self._changed.wait()
            self._reserved += most

    def settle(self, reserved: float, cost: float) -> None:
        """Replace what was set aside by what the call cost."""
        with self._changed:
            # Rounding must not leave a remainder that looks like a running call.
            left = self._reserved - reserved
            self._reserved = left if left > 1e-12 else 0.0
            self.spent += cost
            self._changed.notify_all()

    @contextmanager
    def half_of_the_rest(self) -> Iterator[None]:
        """In the block, leave half of what is left of `judge.max_cost` for what comes after it."""
        limit = self._limit
        if limit is not None:
            self._limit = self.spent + max(0.0, limit - self.spent) / 2
        try:
            yield
        finally:
            self._limit = limit


class Budget:
    """Counts what judging costs at a judge's prices, and refuses calls that might cost more than is in the purse."""

    def __init__(self, config: JudgeConfig, purse: Purse) -> None:
        self._prompt_price = config.prompt_price / MILLION
        self._completion_price = config.completion_price / MILLION
        self._purse = purse

    def reserve(self, prompt: JudgePrompt) -> float:
        """Set aside the most that a call may cost, and return it; raises as `Purse.reserve` does."""
        most = self._cost(_length(prompt), prompt.max_output_tokens)
        self._purse.reserve(most)
        return most

    def settle(self, reserved: float, prompt: JudgePrompt, reply: JudgeReply | None) -> float:
        """Replace what was set aside by what the call cost, and return that; a call without a reply costs nothing."""
        cost = 0.0
        if reply is not None:
            # A service that does not count tokens must not look free.
            counted = reply.prompt_tokens or reply.completion_tokens
            sent = reply.prompt_tokens if counted else _length(prompt)
            received = reply.completion_tokens if counted else len(reply.text) // CHARACTERS_PER_TOKEN
            cost = self._cost(sent, received)
        self._purse.settle(reserved, cost)
        return cost

    def _cost(self, sent: float, received: float) -> float:
        return sent * self._prompt_price + received * self._completion_price


def _length(prompt: JudgePrompt) -> int:
    """Tokens of a prompt, estimated too high rather than too low."""
    return (len(prompt.system) + len(prompt.user)) // CHARACTERS_PER_TOKEN
