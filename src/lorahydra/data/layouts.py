"""How a row becomes the messages of an example."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from lorahydra.data.examples import Message
from lorahydra.data.messages import (
    checked_text,
    list_of,
    optional_text,
    parsed,
    read_history,
    read_message,
    read_tools,
    required,
)
from lorahydra.data.problems import Fault, RowError
from lorahydra.data.schemes import Scheme

__all__ = ["Layout", "turns_of"]

Read = TypeVar("Read")
NO_COLUMN = "none"
"""What `data.columns` names where a column is to be left out."""


@dataclass
class Layout:
    """A scheme and the names of its columns in one source; keeps track of what was left out."""

    scheme: Scheme
    mapping: dict[str, str]
    ignored: set[str] = field(default_factory=set)
    """Keys of messages that held something but were not used."""
    cut: int = 0
    """Rows whose answers at the end were left out, since they carry no loss."""

    def column(self, name: str) -> str:
        """The source's name of a scheme's column; one that is mapped to another name is not read by its own as well."""
        if name not in self.mapping and name in self.scheme.optional and name in self.mapping.values():
            return NO_COLUMN
        return self.mapping.get(name, name)

    @property
    def used(self) -> dict[str, str]:
        """Scheme column → column of the source, for all that the scheme reads."""
        return {name: self.column(name) for name in self.scheme.required + self.scheme.optional}

    def conversations(self, row: Mapping[str, Any]) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
        """The messages of a row, and where it is a pair of answers, the messages with the rejected answer, else none.

        Raises like `messages`.
        """
        return self.messages(row), ()

    def messages(self, row: Mapping[str, Any]) -> tuple[Message, ...]:
        """Turn a row into messages that end with an answer that carries loss.

        Raises:
            RowError: Something is missing, of the wrong type, empty or out of order.
        """
        if not self.scheme.keys:
            answer = self._text(row, self.scheme.required[1], fault=Fault.EMPTY_ANSWER)
            return *self._prompt(row), Message("assistant", answer)
        messages = self._conversation(row)
        column = self.column(self.scheme.required[0])
        _check_order(messages, column)
        last = max((n for n, m in enumerate(messages) if m.role == "assistant" and m.learned), default=None)
        if last is None:
            raise RowError("every answer has the weight 0, so there is nothing to learn from", field=column)
        self.cut += last < len(messages) - 1
        return messages[: last + 1]

    def question(self, row: Mapping[str, Any]) -> tuple[Message, ...]:
        """Turn a row into the messages up to the one to answer, without the answer to it. Raises like `messages`."""
        if not self.scheme.keys:
            return self._prompt(row)
        messages = self._conversation(row)
        if messages and messages[-1].role == "assistant":
            messages = messages[:-1]
        if not messages or messages[-1].role != "user":
            raise RowError("has no user message to answer", field=self.column(self.scheme.required[0]))
        return messages

    def tools(self, row: Mapping[str, Any]) -> str:
        """The tools that a row offers, as a JSON list; empty where there are none.

        Raises:
            RowError: They are not a list of objects.
        """
        return self._context(row, "tools", read_tools)

    def _prompt(self, row: Mapping[str, Any]) -> tuple[Message, ...]:
        """What precedes the answer."""
        return self._asked(row, self.scheme.required[0])

    def _asked(self, row: Mapping[str, Any], name: str) -> tuple[Message, ...]:
        """The system message where there is one, the turns before, and the question in a column."""
        prompt = self._text(row, name)
        column = self.column("input")
        if "input" in self.scheme.optional and (extra := optional_text(row.get(column), column)):
            prompt = f"{prompt}\n\n{extra}"
        return *self._system(row), *self._context(row, "history", read_history), Message("user", prompt)

    def _system(self, row: Mapping[str, Any]) -> tuple[Message, ...]:
        """The column's system message: an empty column stands for none, unlike an empty message."""
        text = self._context(row, "system", optional_text)
        return (Message("system", text),) if text else ()

    def _context(self, row: Mapping[str, Any], name: str, read: Callable[[object, str], Read]) -> Read:
        """The value of one of the `CONTEXT` columns, as `read` returns it."""
        column = self.column(name)
        try:
            return read(row.get(column), column)
        except RowError as error:
            hint = f" (data.columns.{name}={NO_COLUMN} leaves the column out)"
            raise RowError(error.message + hint, field=error.field, fault=error.fault) from error

    def _text(self, row: Mapping[str, Any], name: str, fault: Fault = Fault.OTHER) -> str:
        column = self.column(name)
        text = checked_text(required(row, column), column)
        if not text.strip():
            raise RowError("is empty", field=column, fault=fault)
        return text

    def _conversation(self, row: Mapping[str, Any]) -> tuple[Message, ...]:
        column = self.column(self.scheme.required[0])
        turns = turns_of(required(row, column), column)
        keys = (self.column(self.scheme.keys[0]), self.column(self.scheme.keys[1]))
        return self._read(turns, column, keys, self._system(row), sharegpt=self.scheme.name == "conversations")

    def _read(
        self, turns: list[object], column: str, keys: tuple[str, str], system: tuple[Message, ...], *, sharegpt: bool
    ) -> tuple[Message, ...]:
        """A list of messages after the column's system message, if there is one."""
        messages = list(system)
        from_column = len(messages)
        for number, turn in enumerate(turns):
            where = f"{column}[{number}]"
            message, ignored = read_message(turn, where, keys, sharegpt=sharegpt)
            self.ignored.update(f"{column}[].{key}" for key in ignored)
            if message.role == "system" and messages:
                if messages == [message] and from_column:
                    continue
                what = "a second system message" if messages[0].role == "system" else "a system message after others"
                if len(messages) == from_column:
                    what = "a system message that differs from the column's"
                raise RowError(f"{what}: only the first message may be a system message", field=where)
            messages.append(message)
        return tuple(messages)


def turns_of(value: object, column: str) -> list[object]:
    """The list of messages, which CSV holds as JSON and `datasets` may store as an object of lists."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = parsed(value, column)
    if isinstance(value, Mapping) and value and all(isinstance(part, list) for part in value.values()):
        if len({len(part) for part in value.values()}) > 1:
            raise RowError("holds lists of different lengths", field=column)
        value = [dict(zip(value, parts, strict=True)) for parts in zip(*value.values(), strict=True)]
    if turns := list_of(value, column, "messages"):
        return turns
    raise RowError("is an empty list", field=column)


def _check_order(messages: tuple[Message, ...], column: str) -> None:
    if not messages or messages[-1].role != "assistant":
        last = messages[-1].role if messages else "system"
        raise RowError(f"ends with a {last} message: the last one must be the assistant's answer", field=column)
    if all(message.role != "user" for message in messages):
        raise RowError("has no user message", field=column)
