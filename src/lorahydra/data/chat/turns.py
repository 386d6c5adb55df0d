"""What a chat template puts around turns, and so what ends an answer; found by rendering made-up conversations."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["TextEnd", "Turns", "alternatives", "find_turns"]

Render = Callable[[list[dict[str, Any]], bool], str]
"""Renders turns; the flag says whether the generation prompt follows them. Raises what Jinja raises."""

# Characters for private use, which no template strips.
QUESTION, ANSWER, NEXT, THOUGHT = "\ue010", "\ue011", "\ue012", "\ue013"
MARKER = re.compile(r"[<\[{|].*[>\]}|]", re.DOTALL)
"""Matches added tokens that are written like control tokens; the others are words or runs of spaces."""
FOREIGN_OPENINGS = ("<|im_start|>", "<|start_header_id|>", "<start_of_turn>", "[INST]")
"""How templates of well-known families begin a turn, to recognise text that was rendered for another model."""


@dataclass(frozen=True)
class Turns:
    """What a template puts around turns."""

    control: tuple[str, ...]
    """Control tokens: the tokenizer's special ones, and what the template marks turns with."""
    marks: tuple[str, ...]
    """Those that the tokenizer does not call special."""
    end_tokens: tuple[str, ...]
    """Control tokens that end an answer, the end-of-sequence token among them."""
    end_texts: tuple[str, ...]
    """Plain text that begins the next turn, where no control token does; it is searched for in an answer with a line
    break put before it."""
    openings: tuple[str, ...]
    """How a user's and an assistant's turn begin; a message that holds one may be a rendered conversation."""
    keeps_system: bool
    """False where the template silently leaves system messages out."""


def find_turns(render: Render, tokenizer: Any) -> Turns:
    """Find what a template puts around turns; it renders a question with its answer."""
    added = tokenizer.added_tokens_decoder.values()
    special = {token.content for token in added if token.special} | set(tokenizer.all_special_tokens)
    turns = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
    ending = _after(render(turns, False), ANSWER)
    following = _tried(render, [*turns, {"role": "user", "content": NEXT}], True)
    between, before_answer = _between(following, ANSWER, NEXT), _between(following, QUESTION, ANSWER)
    # Some tokenizers have their turn markers as tokens that are not special.
    marks = {token.content for token in added if token.content in ending + between and MARKER.fullmatch(token.content)}
    control = tuple(sorted(special | marks))
    pattern = alternatives(control)

    texts = _beginnings(between, pattern)
    # A word that begins an answer ("Answer:") may also be part of one.
    texts += [text for text in _beginnings(before_answer, pattern) if not text.strip()[0].isalnum()]
    shown = [_first_line(part, pattern) for part in (between, before_answer) if pattern.search(part)]
    return Turns(
        control=control,
        marks=tuple(sorted(marks - special)),
        end_tokens=_end_tokens(render, turns, ending, between, pattern, tokenizer.eos_token),
        end_texts=tuple(dict.fromkeys(texts)),
        openings=tuple(dict.fromkeys([*(line for line in shown if pattern.search(line)), *texts, *FOREIGN_OPENINGS])),
        # A template that refuses system messages does not leave them out silently: its error says so.
        keeps_system=NEXT in (_tried(render, [{"role": "system", "content": NEXT}, turns[0]], True) or NEXT),
    )


def alternatives(names: Iterable[str]) -> re.Pattern[str]:
    """A pattern for any of the names; the longest that fits is found."""
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))))


def _end_tokens(
    render: Render, turns: list[dict[str, Any]], ending: str, between: str, pattern: re.Pattern[str], eos: str
) -> tuple[str, ...]:
    last = pattern.findall(ending)[:1]
    # The end of an earlier answer, which some templates have another token for, and the beginning of the next turn.
    earlier = pattern.findall(between)[:2]
    thinking = {"content": ANSWER, "reasoning_content": THOUGHT, "thinking": THOUGHT}
    inside = _between(_tried(render, [turns[0], {"role": "assistant", **thinking}], False), THOUGHT, ANSWER)
    earlier = [token for token in earlier if token not in inside]
    call = {"type": "function", "id": "call00000", "function": {"name": "f", "arguments": {"a": ANSWER}}}
    calling = {"role": "assistant", "content": "", "tool_calls": [call]}
    # A call may have tokens that end its parts; the last one ends the turn.
    called = pattern.findall(_after(_tried(render, [turns[0], calling], False), ANSWER))[-1:]
    return tuple(dict.fromkeys([*last, *earlier, *called, eos]))


def _tried(render: Render, turns: list[dict[str, Any]], prompting: bool) -> str:
    """The turns as text; empty where the template cannot render them."""
    try:
        return render(turns, prompting)
    except Exception:  # a template is a program that a user brings
        return ""


def _after(text: str, mark: str) -> str:
    """What stands after the last occurrence of a mark; empty if it does not occur."""
    _, separator, rest = text.rpartition(mark)
    return rest if separator else ""


def _between(text: str, start: str, end: str) -> str:
    """What stands between two marks; empty where they are missing."""
    inside, closing, _ = text.partition(start)[2].partition(end)
    return inside if closing else ""


def _first_line(literal: str, pattern: re.Pattern[str]) -> str:
    """How a turn begins, without the token that ends the one before."""
    return (pattern.split(literal, maxsplit=1)[-1].strip() or literal.strip()).partition("\n")[0]


def _beginnings(literal: str, pattern: re.Pattern[str]) -> list[str]:
    """The plain text that begins a turn, as it may follow an answer; none where a control token begins it."""
    # What follows the token that ends the turn before, or all of it where none does.
    literal = pattern.split(literal, maxsplit=1)[-1]
    line = literal.strip().rpartition("\n")[2].strip()
    if len(line) < 2 or pattern.search(literal):
        return []
    if MARKER.match(line):
        # Ordinary text does not contain such a marker anywhere.
        return [line]
    return [f"\n{line}"] if "\n" in literal[: literal.rfind(line)] else [f"\n{line}", f" {line}"]


class TextEnd:
    """Tells where an answer ends by one of `Turns.end_texts`."""

    def __init__(self, tokenizer: Any, texts: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._pattern = alternatives(texts)
        self._last = {text[-1] for text in texts}
        # A token is at least one byte, so this many tokens hold the longest text.
        self._tail = max(len(text.encode()) for text in texts) + 2
        self._completing: dict[int, bool] = {}

    def __call__(self, tokens: Sequence[int]) -> int | None:
        """How many tokens of an answer remain if the last one has just completed such a text, else None."""
        last = tokens[-1]
        completing = self._completing.get(last)
        if completing is None:
            # Most tokens never complete such a text, so after them nothing has to be decoded.
            completing = self._completing[last] = bool(self._last.intersection(self._text([last])))
        if not completing:
            return None
        tail = self._text(tokens[-self._tail :])
        if not self._pattern.search(tail if len(tokens) > self._tail else f"\n{tail}"):
            return None
        return self.kept(tokens)

    def kept(self, tokens: Sequence[int]) -> int:
        """How many tokens stand before the first such text."""
        text = "\n" + self._text(tokens)
        match = self._pattern.search(text)
        if match is None:
            return len(tokens)
        answer = text[: match.start()].strip()
        count = len(tokens)
        while count and len(self._text(tokens[:count]).strip()) > len(answer):
            count -= 1
        return count

    def _text(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text
