"""Column schemes: which columns make up an example, how they are detected, and how a row becomes messages."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
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
from lorahydra.errors import DataError, one_line

__all__ = ["SCHEMES", "Layout", "Scheme", "detect", "detect_prompts", "known_columns"]

Read = TypeVar("Read")


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


def known_columns(mapping: Mapping[str, str]) -> frozenset[str]:
    """All columns of a file that may be used under this mapping."""
    return frozenset(mapping.values()).union(*(scheme.names for scheme in SCHEMES.values()))


def detect(
    columns: Collection[str], wanted: str, mapping: Mapping[str, str], source: str, *, several: bool = False
) -> Layout:
    """Choose the scheme that fits the columns of a source.

    Args:
        columns: The source's columns.
        wanted: `data.format`: a scheme's name, or `auto`.
        mapping: `data.columns`: scheme column → column of the source.
        source: Name of the source in errors.
        several: There are other sources, of other schemes perhaps: each scheme takes its own part of the mapping.

    Raises:
        DataError: No scheme fits, or more than one.
    """
    schemes = list(SCHEMES.values()) if wanted == "auto" else [SCHEMES[wanted]]
    layouts = [
        Layout(scheme, {name: column for name, column in mapping.items() if name in scheme.names})
        for scheme in schemes
        if several or set(mapping) <= set(scheme.names)
    ]
    if not layouts:
        allowed = "; ".join(f"{scheme.name}: {', '.join(scheme.names)}" for scheme in schemes)
        raise DataError(f"data.columns maps columns of different schemes: {', '.join(mapping)} (columns of {allowed})")
    fitting = [layout for layout in layouts if all(layout.column(name) in columns for name in layout.scheme.required)]
    if len(fitting) == 1:
        return fitting[0]
    present = one_line(", ".join(sorted(columns))) or "none"
    if fitting:
        names = " and ".join(layout.scheme.name for layout in fitting)
        raise DataError(f"{names} both fit the columns {present}: set data.format to one of them", path=source)
    raise DataError(f"no column scheme fits the columns found ({present}): {_needs(layouts, columns)}", path=source)


def detect_prompts(columns: Collection[str], source: str) -> Layout:
    """Choose the scheme whose prompts a source has, with answers beside them or without; raises like `detect`."""
    whole = [scheme for scheme in SCHEMES.values() if set(scheme.required) <= set(columns)]
    fitting = whole or [scheme for scheme in SCHEMES.values() if scheme.required[0] in columns]
    if len(fitting) == 1:
        return Layout(fitting[0], {})
    present = one_line(", ".join(sorted(columns))) or "none"
    if fitting:
        names = " and ".join(scheme.required[0] for scheme in fitting)
        raise DataError(f"{names} could all be the prompts: keep one of them (columns: {present})", path=source)
    wanted = " or ".join(scheme.required[0] for scheme in SCHEMES.values())
    raise DataError(
        f"none of the columns found ({present}) holds prompts: rename the one that does to {wanted}", path=source
    )


def _needs(layouts: Iterable[Layout], columns: Collection[str]) -> str:
    """What would have been accepted; a mapping is proposed where only upper and lower case differ."""
    schemes = [" + ".join(layout.column(name) for name in layout.scheme.required) for layout in layouts]
    text = f"expected {' or '.join(schemes)}; map other names with data.columns"
    by_lower = {column.lower(): column for column in columns}
    for layout in layouts:
        close = {name: by_lower.get(layout.column(name).lower()) for name in layout.scheme.required}
        if all(close.values()):
            return f"{text}, here {' '.join(f'data.columns.{name}={column}' for name, column in close.items())}"
    return f"{text}, for example data.columns.question=q"


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
        """The source's name of a scheme's column or key."""
        return self.mapping.get(name, name)

    @property
    def used(self) -> dict[str, str]:
        """Scheme column → column of the source, for all that the scheme reads."""
        return {name: self.column(name) for name in self.scheme.required + self.scheme.optional}

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
        """The system message where there is one, the turns before, and the question."""
        prompt = self._text(row, self.scheme.required[0])
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
            hint = f" (data.columns.{name}=none leaves the column out)"
            raise RowError(error.message + hint, field=error.field, fault=error.fault) from error

    def _text(self, row: Mapping[str, Any], name: str, fault: Fault = Fault.OTHER) -> str:
        column = self.column(name)
        text = checked_text(required(row, column), column)
        if not text.strip():
            raise RowError("is empty", field=column, fault=fault)
        return text

    def _conversation(self, row: Mapping[str, Any]) -> tuple[Message, ...]:
        column = self.column(self.scheme.required[0])
        turns = _turns(required(row, column), column)
        messages = list(self._system(row))
        from_column = len(messages)
        keys = (self.column(self.scheme.keys[0]), self.column(self.scheme.keys[1]))
        for number, turn in enumerate(turns):
            where = f"{column}[{number}]"
            message, ignored = read_message(turn, where, keys, sharegpt=self.scheme.name == "conversations")
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


def _turns(value: object, column: str) -> list[object]:
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
