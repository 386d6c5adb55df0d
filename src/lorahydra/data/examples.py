"""What a dataset consists of after reading: conversations, from any kind of columns."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, NamedTuple

__all__ = ["KEY_BYTES", "ROLES", "Example", "Keys", "Message", "equal_at_first", "example_keys"]

ROLES = ("system", "user", "assistant", "tool")
"""Add new roles at the end: positions are part of content hashes, which decide how data are split."""
KEY_BYTES = 16


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    """`system`, `user`, `assistant` or `tool`."""
    content: str
    """The text, exactly as in the source."""
    extras: str = ""
    """Other keys for the chat template, as a JSON object: `tool_calls`, `tool_call_id`, `name`, `reasoning_content`."""
    learned: bool = True
    """Whether an answer carries loss; the last one of an example always does."""

    @property
    def fields(self) -> dict[str, Any]:
        """The `extras` as a mapping."""
        return json.loads(self.extras) if self.extras else {}


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation to train on; its last message is the assistant's."""

    messages: tuple[Message, ...]
    line: int
    """1-based line of the source; the row where the format has no lines (Parquet, saved and hub datasets)."""
    tools: str = ""
    """Tools that may be called, as a JSON list for the chat template; empty for none."""
    source: str = field(default="", compare=False)
    """The source as the user named it, for messages."""
    rejected: tuple[Message, ...] = ()
    """For a pair of answers, the same conversation with the answer that is not preferred; empty otherwise."""


def equal_at_first(one: Sequence[object], other: Sequence[object]) -> int:
    """How many items two sequences have in common before the first that differs."""
    return sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(one, other, strict=False)))


class Keys(NamedTuple):
    """Content hashes of one example, `KEY_BYTES` each; equal texts have equal keys on every machine."""

    prompt: bytes
    """Hash of everything before the last answer."""
    example: bytes
    """Hash of everything."""


def example_keys(messages: Sequence[Message], tools: str = "", rejected: Sequence[Message] = ()) -> Keys:
    """Hash a conversation with everything that decides what is learnt from it.

    Raises:
        UnicodeEncodeError: A text holds a lone surrogate, which is not Unicode.
    """
    state = hashlib.blake2b(digest_size=KEY_BYTES)
    if tools:
        _add(state, ord("t"), tools)
    before_last = state
    for message in messages:
        before_last = state.copy()
        # Role and length come first, so that two different conversations never make the same bytes.
        _add(state, ROLES.index(message.role), message.content)
        if message.extras:
            _add(state, ord("+"), message.extras)
    # At the end, so that the key of the prompt does not depend on which answers carry loss.
    if not all(message.learned for message in messages):
        _add(state, ord("w"), "".join("01"[message.learned] for message in messages))
    if rejected:
        _add(state, ord("r"), example_keys(rejected).example.hex())
    return Keys(before_last.digest(), state.digest())


def _add(state: Any, kind: int, text: str) -> None:
    content = text.encode()
    state.update(b"%c%d:" % (kind, len(content)))
    state.update(content)
