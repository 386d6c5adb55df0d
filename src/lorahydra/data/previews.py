"""The first examples of a split as the model will see them: text, tokens, which of them carry loss, and what is cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from lorahydra.data.chat.chat_format import ChatFormat, Tokens
from lorahydra.data.length_limits import Fit
from lorahydra.data.splits import Split
from lorahydra.data.tokens import all_warnings, encoded_sides

__all__ = ["Limits", "Part", "Preview", "preview"]


@dataclass(frozen=True)
class Part:
    """Neighbouring tokens that all carry loss, or all carry none."""

    text: str
    """The tokens as text, control tokens included."""
    start: int
    end: int
    """Places of its tokens; the end is exclusive."""
    loss: bool


@dataclass(frozen=True)
class Preview:
    """One example in training."""

    source: str
    line: int
    """Line of the source; the row where the format has no lines."""
    tokens: int
    """Number of all its tokens."""
    loss_tokens: int
    """How many of those that are kept carry loss."""
    cut: int
    """Tokens at the end that are left out because of `data.overlong=truncate`."""
    fault: str
    """Why the example as a whole is refused (`data.overlong=error`) or left out; empty if it is used."""
    input_ids: list[int]
    """The tokens that are kept, or all of them if the example is not used."""
    parts: list[Part]
    """All of these tokens in their order."""
    warnings: list[str]
    """What is unusual about the example."""
    rejected: list[Part] = field(default_factory=list)
    """For a pair of answers, the tokens with the rejected one; the other fields are about the chosen one."""


def preview(split: Split, chat: ChatFormat, count: int, limits: Limits) -> list[Preview]:
    """Show the first examples of a split.

    Args:
        split: The examples; only the first `count` of them are tokenized.
        chat: The model's chat format.
        count: How many to show.
        limits: How long an example may be.

    Raises:
        DataError: The template refuses an example.
    """
    examples = split[:count]
    encoded = encoded_sides(examples, chat)
    fit = limits.measure([[tokens for _, tokens in side] for side in encoded])
    learned = set(fit.used.tolist())
    shown = []
    for row, ((example, tokens), *rejected) in enumerate(zip(*encoded, strict=True)):
        fault = fit.fault(row) if row in fit.faults else ""
        used = row in learned and not (fault and limits.overlong == "error")
        limit = Fit.limit(limits.max_length, limits.window) if used else None
        ids = tokens.input_ids[:limit]
        parts = list(_parts(chat, ids, tokens.spans))
        sides = [(example, tokens), *rejected]
        warnings = dict.fromkeys(warning.value for side in sides for warning in all_warnings(chat, *side))
        shown.append(
            Preview(
                example.source,
                example.line,
                tokens=len(tokens.input_ids),
                loss_tokens=sum(part.end - part.start for part in parts if part.loss),
                cut=len(tokens.input_ids) - len(ids),
                fault="" if used else fault or "no token of an answer is left",
                input_ids=ids,
                parts=parts,
                warnings=list(warnings),
                rejected=[part for _, other in rejected for part in _parts(chat, other.input_ids[:limit], other.spans)],
            )
        )
    return shown


@dataclass(frozen=True)
class Limits:
    """How long an example may be; the fields are those of `Fit`."""

    max_length: int
    overlong: str
    window: int | None
    max_new_tokens: int

    def measure(self, sides: Sequence[Sequence[Tokens]]) -> Fit:
        """Compare examples with the limits; of pairs, both sides."""
        limit = Fit.limit(self.max_length, self.window)
        losses = [[sum(min(e, limit) - min(s, limit) for s, e in tokens.spans) for tokens in side] for side in sides]
        return Fit(
            np.max(np.array([[len(tokens.input_ids) for tokens in side] for side in sides], np.int64), axis=0),
            np.array([tokens.spans[-1][0] for tokens in sides[0]], np.int64),
            np.min(np.array(losses, np.int64), axis=0),
            self.max_length,
            self.overlong,
            self.window,
            self.max_new_tokens,
        )


def _parts(chat: ChatFormat, ids: Sequence[int], spans: Sequence[tuple[int, int]]) -> Iterator[Part]:
    borders = sorted({0, len(ids), *(min(place, len(ids)) for span in spans for place in span)})
    before = ""
    for start, end in pairwise(borders):
        # All tokens from the beginning, because some have a space only after others. If the last one is a part of a
        # character, that is shown with the next part.
        text = chat.text(ids[:end])
        text = text if end == len(ids) else text.rstrip("\ufffd")
        yield Part(text[len(before) :], start, end, any(first <= start < last for first, last in spans))
        before = text
