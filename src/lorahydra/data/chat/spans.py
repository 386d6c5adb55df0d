"""Where answers are: in the text that a template made of them, and in the tokens of that text."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

__all__ = ["Span", "kept_form", "token_span", "unused_mark"]

Span = tuple[int, int]
"""From, up to but not including."""


def kept_form(answer: str, fits: Callable[[str], bool]) -> str | None:
    """The form in which a template kept an answer: as it is, or without white space around it."""
    forms = (answer, answer.strip(), answer.strip("\n"), answer.lstrip("\n"), answer.lstrip(), answer.rstrip())
    return next((form for form in forms if fits(form)), None)


def unused_mark(text: str) -> str:
    """A mark that does not occur in `text` and that no template strips: characters for private use."""
    mark = "\ue000"
    while mark in text:
        mark += "\ue001"
    return mark


def token_span(text: str, offsets: list[Span], span: Span) -> Span:
    """The tokens that lie in a span of characters.

    A token that begins before the span counts only if it adds nothing but spaces: many tokenizers join
    a space to the next word.
    """
    start, end = span
    starts = [offset[0] for offset in offsets]
    first = bisect_left(starts, start)
    if first and offsets[first - 1][1] > start and not text[starts[first - 1] : start].strip(" "):
        first -= 1
    return first, max(first, bisect_left(starts, end))
