"""Conversations with tool calls under a chat template: does it have a place for them, and where are the answers?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from lorahydra.data.chat.spans import Span, kept_form, unused_mark

__all__ = ["Render", "answer_spans", "holds_calls", "missing_place"]

Turn = dict[str, Any]


class Render(Protocol):
    """A chat template with the tools of a conversation."""

    def __call__(self, turns: list[Turn], *, prompting: bool, thinking: bool = False) -> str:
        """The turns as text, with the generation prompt or without."""


def holds_calls(turns: Sequence[Turn]) -> bool:
    """Whether a tool is called or answers."""
    return any(turn["role"] == "tool" or "tool_calls" in turn for turn in turns)


def missing_place(turns: list[Turn], render: Render) -> str | None:
    """What the template has no place for: names, arguments or results in the turns that it leaves out.

    Returns:
        A few words; None where everything is in the text.
    """
    mark = unused_mark(render(turns, prompting=False))
    calls: list[str] = []
    results: list[str] = []

    def marked(into: list[str]) -> str:
        into.append(f"{mark}{len(calls) + len(results)}{mark}")
        return into[-1]

    changed = []
    for turn in turns:
        if turn["role"] == "tool":
            turn = {**turn, "content": marked(results)}
        elif "tool_calls" in turn:
            functions = ({"name": marked(calls), "arguments": {"x": marked(calls)}} for _ in turn["tool_calls"])
            pairs = zip(turn["tool_calls"], functions, strict=True)
            turn = {**turn, "tool_calls": [{**call, "function": function} for call, function in pairs]}
        changed.append(turn)
    text = render(changed, prompting=False)
    if any(part not in text for part in calls):
        return "calls of tools"
    return "results of tools" if any(part not in text for part in results) else None


def answer_spans(
    turns: list[Turn], text: str, render: Render, end_of_turn: str, first_control: Callable[[str], str]
) -> list[Span] | None:
    """Where the assistant's turns are in the text of a conversation, each up to and with the end of the turn.

    Args:
        turns: The conversation.
        text: The conversation under the template, without a generation prompt.
        render: The template.
        end_of_turn: What the template puts after an answer; empty where it puts nothing.
        first_control: The beginning of a text up to and with its first control token; empty where it has none.

    Returns:
        Spans of characters; None where the template changes an answer, or writes the beginning of a conversation
        differently when more follows.
    """
    spans = []
    for number, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        start = _start(turns[:number], text, render, last=number == len(turns) - 1)
        if start is None:
            return None
        if end_of_turn:
            place = text.find(end_of_turn, start)
            end = place + len(end_of_turn) if place >= 0 else start
        else:
            end = start + len(first_control(text[start:])) or len(text)
        if end == start or (turn["content"] and kept_form(turn["content"], text[start:end].__contains__) is None):
            return None
        if number + 1 < len(turns) and _reaches(turns, number + 1, render, end):
            return None
        spans.append((start, end))
    return spans


def _start(before: list[Turn], text: str, render: Render, *, last: bool) -> int | None:
    """Where the answer to `before` begins: after the generation prompt, which may hold more than the history does."""
    for thinking in (False,) if last else (False, True):
        prompt = render(before, prompting=True, thinking=thinking)
        if text.startswith(prompt):
            return len(prompt)
    return None


def _reaches(turns: list[Turn], following: int, render: Render, end: int) -> bool:
    """Whether a turn that ends at `end` would hold some of what follows it."""
    mark = unused_mark("".join(str(turn) for turn in turns))
    turn = turns[following]
    if "tool_calls" in turn or turn["role"] == "assistant":
        return False
    changed = [*turns[:following], {**turn, "content": mark}, *turns[following + 1 :]]
    place = render(changed, prompting=False).find(mark)
    return 0 <= place < end
