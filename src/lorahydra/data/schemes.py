"""Column schemes: which columns make up an example, by the ways in which people write them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["PREFERENCE", "PROMPTS", "SCHEMES", "Scheme", "known_columns"]


@dataclass(frozen=True)
class Scheme:
    """The columns of one way to write examples."""

    name: str
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    """Keys of each message for the speaker and the text, in schemes whose one column is a list of messages."""

    @property
    def names(self) -> tuple[str, ...]:
        """All names that `data.columns` may map."""
        return self.required + self.optional


CONTEXT = ("system", "history", "tools")
"""Columns besides a question and its answer: the system message, earlier turns, and tools that may be called."""
SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme("prompt_completion", ("prompt", "completion"), optional=CONTEXT),
        Scheme("instruction", ("instruction", "output"), optional=("input", *CONTEXT)),
        Scheme("question_answer", ("question", "answer"), optional=CONTEXT),
        Scheme("messages", ("messages",), optional=("system", "tools"), keys=("role", "content")),
        Scheme("conversations", ("conversations",), optional=("system", "tools"), keys=("from", "value")),
    )
}
PREFERENCE = Scheme("preference", ("chosen", "rejected"), optional=("prompt", "input", *CONTEXT))
"""Pairs of answers (`lorahydra.data.preferences`), which are only for `training.method=dpo`."""
PROMPTS = ("prompt", "question", "instruction", "conversations", "input")
"""Usual names of the column with their prompts; `input` holds more text where there is another one."""


def known_columns(mapping: Mapping[str, str]) -> frozenset[str]:
    """All columns of a file that may be used under this mapping."""
    return frozenset(mapping.values()).union(*(scheme.names for scheme in SCHEMES.values()), PREFERENCE.names)
