"""Turns the long messages of other libraries into one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lorahydra.errors import ModelError, library_errors

__all__ = ["first_line", "loading"]

LENGTH = 300
"""Longest line kept, in characters."""


def first_line(error: BaseException) -> str:
    """The first line of the message of `error` that says something, cut to a readable length."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[0] if lines else ""
    if line.endswith(":"):
        line = " ".join(lines[:2])
    if not line or isinstance(error, LookupError | AttributeError | RecursionError):
        # Of these the message alone says nothing.
        line = f"{type(error).__name__}{': ' if line else ''}{line}"
    return line if len(line) <= LENGTH else f"{line[: LENGTH - 1]}…"


@contextmanager
def loading(what: str) -> Iterator[None]:
    """Turn whatever a library raises on a broken file into one clear line.

    Args:
        what: The beginning of the line, for example `the tokenizer of X cannot be read`.

    Raises:
        ModelError: Instead of any other error of the block: no library says beforehand which ones it raises.
        MemoryError: There is not enough.
    """
    with library_errors(lambda error: ModelError(f"{what}: {first_line(error)}")):
        yield
