"""Turns the long messages of other libraries into one line."""

from __future__ import annotations

__all__ = ["first_line"]

LENGTH = 300
"""Longest line kept, in characters."""


def first_line(error: BaseException) -> str:
    """The first line of the message of `error` that says something, cut to a readable length."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[0] if lines else type(error).__name__
    return line if len(line) <= LENGTH else f"{line[: LENGTH - 1]}…"
