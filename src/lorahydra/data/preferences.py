r"""Pairs of answers to the same prompt, of which one is preferred, in the forms in which datasets hold them.

| `prompt` | `chosen` and `rejected` |
|---|---|
| text or messages | texts: the answers |
| text or messages | messages that begin with the assistant's: the answers |
| not needed | messages of a whole conversation, of which both have the beginning in common: the prompt |
| not needed | a transcript (`\n\nHuman: …\n\nAssistant: …`): the same as text |
| no column at all | texts: the words that both begin with are the prompt |

Answers may go on for several turns. What the two conversations have in common carries no loss.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lorahydra.data.examples import Message, equal_at_first
from lorahydra.data.layouts import Layout, turns_of
from lorahydra.data.messages import parsed, required
from lorahydra.data.problems import Fault, RowError
from lorahydra.data.schemes import PREFERENCE, PROMPTS

__all__ = ["PairLayout", "pair_layout"]

SPEAKERS = {"Human": "user", "Assistant": "assistant"}
"""Who speaks in a transcript, as Anthropic's datasets name them."""
TURN = re.compile(rf"\n\n({'|'.join(SPEAKERS)}):")
CUT = re.compile(r"\s*Human:.*\n\nAssistant:", re.DOTALL)
"""A transcript whose first empty line is missing, or an answer that quotes one."""


def pair_layout(mapping: Mapping[str, str], columns: Collection[str]) -> PairLayout:
    """The layout of pairs in a file with these columns, whose prompts may be in a column of a usual name."""
    found = next((name for name in PROMPTS if name in columns and name not in mapping.values()), None)
    named = {"prompt": found, **mapping} if found is not None else dict(mapping)
    layout = PairLayout(PREFERENCE, named)
    layout.alone = set(columns) <= set(map(layout.column, PREFERENCE.required))
    return layout


@dataclass
class PairLayout(Layout):
    """The scheme `preference`."""

    alone: bool = False
    """Whether the file has no columns but those of the answers; another one may hold the prompts."""

    def conversations(self, row: Mapping[str, Any]) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
        """The conversation with the chosen answer, and the one with the rejected answer."""
        names = self.scheme.required
        columns = [self.column(name) for name in names]
        sides = self._sides([self._side(row, name) for name in names], columns)
        if any(side[0].role == "assistant" for side in sides):
            prompt = self._prompt(row)
            whole = [(*prompt, *side) if side[0].role == "assistant" else (*self._system(row), *side) for side in sides]
        else:
            whole = [(*self._system(row), *side) if side[0].role != "system" else tuple(side) for side in sides]
        shared = equal_at_first(*whole)
        chosen, rejected = (_with_loss(messages, shared) for messages in whole)
        _check(chosen, rejected, shared, columns)
        return chosen, rejected

    def messages(self, row: Mapping[str, Any]) -> tuple[Message, ...]:
        """The conversation with the chosen answer."""
        return self.conversations(row)[0]

    def question(self, row: Mapping[str, Any]) -> tuple[Message, ...]:
        """The messages before the answers."""
        return self.messages(row)[:-1]

    def _side(self, row: Mapping[str, Any], name: str) -> str | list[Message]:
        """A text, or the messages that a column holds."""
        column = self.column(name)
        turns = _listed(required(row, column), column)
        if turns is not None:
            return self._messages(turns, column)
        text = self._text(row, name, fault=Fault.EMPTY_ANSWER)
        if self.alone and CUT.match(text):  # beside a prompt, it may be a dialogue that was asked for
            text = f"\n\n{text.lstrip()}"
        return _transcript(text, column) if TURN.match(text) else text

    def _messages(self, turns: Sequence[object], column: str) -> list[Message]:
        sharegpt = isinstance(turns[0], Mapping) and "from" in turns[0]
        keys = ("from", "value") if sharegpt else ("role", "content")
        return list(self._read(list(turns), column, keys, (), sharegpt=sharegpt))

    def _prompt(self, row: Mapping[str, Any]) -> tuple[Message, ...]:
        column = self.column("prompt")
        if column not in row:
            raise RowError(
                "chosen and rejected hold answers only: name the column with the prompts with data.columns.prompt, or "
                "remove all other columns if both texts begin with the prompt"
            )
        turns = _listed(row[column], column)
        if turns is None:
            text = self._text(row, "prompt")
            if CUT.fullmatch(text.rstrip()):
                text = f"\n\n{text.lstrip()}"
            if not TURN.match(text):
                return self._asked(row, "prompt")
            messages = _transcript(re.sub(r"\n\nAssistant:\s*$", "", text), column)
            return (*self._system(row), *messages)
        messages = self._messages(turns, column)
        system = () if messages[0].role == "system" else self._system(row)
        return (*system, *messages)

    def _sides(self, sides: Sequence[str | list[Message]], columns: Sequence[str]) -> list[list[Message]]:
        """The sides as messages: texts are answers, or where the file has nothing else, prompts with answers."""
        texts = [side for side in sides if isinstance(side, str)]
        if not self.alone or len(texts) < 2:
            return [[Message("assistant", side)] if isinstance(side, str) else side for side in sides]
        words = [re.findall(r"\S+\s*|^\s+", text) for text in texts]
        shared = equal_at_first(*words)
        prompt, answers = "".join(words[0][:shared]), ["".join(rest[shared:]) for rest in words]
        if not prompt.strip():
            raise RowError("chosen and rejected hold no prompt: give a column prompt, or messages with the prompt")
        for answer, column in zip(answers, columns, strict=True):
            if not answer.strip():
                raise RowError("holds nothing beyond what both answers begin with", field=column)
        return [[Message("user", prompt.rstrip()), Message("assistant", answer)] for answer in answers]


def _listed(value: object, column: str) -> list[object] | None:
    """The messages in a value; None if it is text."""
    if isinstance(value, str):
        if not value.lstrip().startswith("[{"):
            return None
        try:
            value = parsed(value, column)
        except RowError:  # an answer may begin so
            return None
    if isinstance(value, Mapping) and not all(isinstance(part, list) for part in value.values()):
        return [value]
    return turns_of(value, column) if isinstance(value, list | Mapping) else None


def _transcript(text: str, column: str) -> list[Message]:
    """The turns of a transcript."""
    parts = TURN.split(text)[1:]
    messages = [Message(SPEAKERS[speaker], said.strip()) for speaker, said in zip(parts[::2], parts[1::2], strict=True)]
    for message in messages:
        if not message.content:
            fault = Fault.EMPTY_ANSWER if message.role == "assistant" else Fault.OTHER
            raise RowError(f"the text of the {message.role} is empty", field=column, fault=fault)
    return messages


def _with_loss(messages: Sequence[Message], shared: int) -> tuple[Message, ...]:
    """The messages, of which those carry loss that the two conversations do not share."""
    return tuple(
        replace(message, learned=message.role != "assistant" or place >= shared)
        for place, message in enumerate(messages)
    )


def _check(chosen: Sequence[Message], rejected: Sequence[Message], shared: int, columns: Sequence[str]) -> None:
    if shared == len(chosen) == len(rejected):
        raise RowError("chosen and rejected are the same, so nothing is preferred")
    for messages, column in zip((chosen, rejected), columns, strict=True):
        if messages[-1].role != "assistant":
            raise RowError(
                f"ends with a {messages[-1].role} message: the last one must be the assistant's answer", field=column
            )
        if shared == len(messages):
            raise RowError("ends where the other answer goes on: their last answers must differ", field=column)
        if messages[shared].role != "assistant":
            raise RowError("chosen and rejected do not begin with the same prompt")
    if all(message.role != "user" for message in chosen[:shared]):
        raise RowError("has no user message before the answers", field=columns[0])
