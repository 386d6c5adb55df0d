"""What a dataset is made of after reading: conversations, whatever columns they came from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["KEY_BYTES", "ROLES", "Example", "Keys", "Message", "example_keys"]

ROLES = ("system", "user", "assistant")
KEY_BYTES = 16


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    """`system`, `user` or `assistant`."""
    content: str
    """The text, exactly as it stands in the source."""


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation to learn from; its last message is the assistant's."""

    messages: tuple[Message, ...]
    line: int
    """1-based line of the source; the row where the format has no lines (Parquet, saved and hub datasets)."""


class Keys(NamedTuple):
    """Content hashes of one example, `KEY_BYTES` each; equal texts have equal keys on every machine."""

    prompt: bytes
    """Of everything before the last answer."""
    example: bytes
    """Of everything."""


def example_keys(messages: Iterable[Message]) -> Keys:
    """Hash a conversation.

    Raises:
        UnicodeEncodeError: A text holds a lone surrogate and so is not Unicode.
    """
    state = hashlib.blake2b(digest_size=KEY_BYTES)
    before_last = state
    for message in messages:
        before_last = state.copy()
        content = message.content.encode()
        # Role and length come first, so that no two different conversations make the same byte stream.
        state.update(b"%c%d:" % (ROLES.index(message.role), len(content)))
        state.update(content)
    return Keys(before_last.digest(), state.digest())
