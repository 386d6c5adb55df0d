"""Column schemes: which columns make an example, how they are detected, and how a row becomes messages."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lorahydra.data.examples import ROLES, Message
from lorahydra.data.jsonfiles import parse_json
from lorahydra.data.problems import Fault, one_line
from lorahydra.errors import DataError

__all__ = ["SCHEMES", "Layout", "RowError", "Scheme", "describe", "detect", "detect_prompts", "known_columns"]


class RowError(Exception):
    """A row does not make an example."""

    def __init__(self, message: str, *, field: str | None = None, fault: Fault = Fault.OTHER) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.fault = fault


@dataclass(frozen=True)
class Scheme:
    """Names of the columns of one way to write examples."""

    name: str
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    """Keys of each message, for schemes whose one column is a list of messages: who speaks, and what."""

    @property
    def names(self) -> tuple[str, ...]:
        """All names that `data.columns` may map."""
        return self.required + self.optional


SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme("prompt_completion", ("prompt", "completion")),
        Scheme("instruction", ("instruction", "output"), optional=("input",)),
        Scheme("question_answer", ("question", "answer")),
        Scheme("messages", ("messages",), keys=("role", "content")),
        Scheme("conversations", ("conversations",), keys=("from", "value")),
    )
}
SPEAKERS = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
"""Values of `from` in `conversations`, as ShareGPT and its kin write them."""


def known_columns(mapping: Mapping[str, str]) -> frozenset[str]:
    """Every column of a file that can matter under this mapping."""
    return frozenset(mapping.values()).union(*(scheme.required + scheme.optional for scheme in SCHEMES.values()))


def detect(columns: Collection[str], wanted: str, mapping: Mapping[str, str], source: str) -> Layout:
    """Choose the scheme that fits the columns of a source.

    Args:
        columns: Names of the columns that the source has.
        wanted: `data.format`: a scheme's name, or `auto`.
        mapping: `data.columns`: scheme column → column of the source.
        source: The source as the user named it, for messages.

    Raises:
        DataError: No scheme fits, or more than one.
    """
    _check_mapping(mapping, wanted)
    candidates = [
        scheme
        for scheme in (SCHEMES.values() if wanted == "auto" else (SCHEMES[wanted],))
        if set(mapping) <= set(scheme.names)
    ]
    layouts = [Layout(scheme, dict(mapping)) for scheme in candidates]
    fitting = [layout for layout in layouts if all(layout.column(name) in columns for name in layout.scheme.required)]
    if len(fitting) == 1:
        return fitting[0]
    found = one_line(", ".join(sorted(columns))) or "none"
    if fitting:
        names = " and ".join(layout.scheme.name for layout in fitting)
        raise DataError(f"{names} both fit the columns {found}: set data.format to one of them", path=source)
    raise DataError(f"no column scheme fits the columns found ({found}): {_needs(layouts, columns)}", path=source)


def detect_prompts(columns: Collection[str], source: str) -> Layout:
    """Choose the scheme whose prompts a source has, with answers beside them or without.

    Args:
        columns: Names of the columns that the source has.
        source: The source as the user named it, for messages.

    Raises:
        DataError: No scheme fits, or more than one.
    """
    whole = [scheme for scheme in SCHEMES.values() if set(scheme.required) <= set(columns)]
    fitting = whole or [scheme for scheme in SCHEMES.values() if scheme.required[0] in columns]
    if len(fitting) == 1:
        return Layout(fitting[0], {})
    found = one_line(", ".join(sorted(columns))) or "none"
    if fitting:
        names = " and ".join(scheme.required[0] for scheme in fitting)
        raise DataError(f"{names} could all be the prompts: keep one of them (columns: {found})", path=source)
    wanted = " or ".join(scheme.required[0] for scheme in SCHEMES.values())
    raise DataError(f"no column of prompts among those found ({found}): name one {wanted}", path=source)


def _check_mapping(mapping: Mapping[str, str], wanted: str) -> None:
    schemes = SCHEMES.values() if wanted == "auto" else (SCHEMES[wanted],)
    if not any(set(mapping) <= set(scheme.names) for scheme in schemes):
        allowed = "; ".join(f"{scheme.name}: {', '.join(scheme.names)}" for scheme in schemes)
        raise DataError(f"data.columns maps {', '.join(mapping)}, which no scheme has together (columns of {allowed})")


def _needs(layouts: Iterable[Layout], columns: Collection[str]) -> str:
    """What would have been accepted, with a mapping proposed where only the case of letters differs."""
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
    """A scheme and the names of its columns in one source; remembers what it left out."""

    scheme: Scheme
    mapping: dict[str, str]
    ignored: set[str] = field(default_factory=set)

    def column(self, name: str) -> str:
        """The source's name of a scheme's column or key."""
        return self.mapping.get(name, name)

    @property
    def used(self) -> dict[str, str]:
        """Scheme column → column of the source, for all that the scheme reads."""
        return {name: self.column(name) for name in self.scheme.required + self.scheme.optional}

    def messages(self, row: Mapping[str, Any]) -> tuple[Message, ...]:
        """Turn a row into messages that end with the assistant's.

        Raises:
            RowError: Something is missing, of the wrong type, empty or out of order.
        """
        if self.scheme.keys:
            messages = self._conversation(row)
            _check_order(messages, self.column(self.scheme.required[0]))
            return messages
        prompt = self._prompt(row)
        answer = self._text(row, self.scheme.required[1], fault=Fault.EMPTY_ANSWER)
        return prompt, Message("assistant", answer)

    def question(self, row: Mapping[str, Any]) -> tuple[Message, ...]:
        """Turn a row into messages up to the one to be answered; an answer that the row has is left out.

        Raises:
            RowError: Something is missing, of the wrong type, empty or out of order.
        """
        if not self.scheme.keys:
            return (self._prompt(row),)
        messages = self._conversation(row)
        if messages and messages[-1].role == "assistant":
            messages = messages[:-1]
        if not messages or messages[-1].role != "user":
            raise RowError("has no message of the user to answer", field=self.column(self.scheme.required[0]))
        return messages

    def _prompt(self, row: Mapping[str, Any]) -> Message:
        prompt = self._text(row, self.scheme.required[0])
        if self.scheme.optional and (extra := self._optional_text(row, self.scheme.optional[0])):
            prompt = f"{prompt}\n\n{extra}"
        return Message("user", prompt)

    def _text(self, row: Mapping[str, Any], name: str, fault: Fault = Fault.OTHER) -> str:
        column = self.column(name)
        if column not in row:
            raise RowError("is missing", field=column)
        text = _checked_text(row[column], column)
        if not text.strip():
            raise RowError("is empty", field=column, fault=fault)
        return text

    def _optional_text(self, row: Mapping[str, Any], name: str) -> str:
        column = self.column(name)
        value = row.get(column)
        text = "" if value is None else _checked_text(value, column)
        return text if text.strip() else ""

    def _conversation(self, row: Mapping[str, Any]) -> tuple[Message, ...]:
        column = self.column(self.scheme.required[0])
        if column not in row:
            raise RowError("is missing", field=column)
        messages: list[Message] = []
        for number, turn in enumerate(_turns(row[column], column)):
            where = f"{column}[{number}]"
            message = self._message(turn, where)
            # Datasets of the ShareGPT kind write an empty system message for none.
            if message.role == "system" and not message.content.strip():
                continue
            if message.role == "system" and messages:
                what = "a second system message" if messages[0].role == "system" else "a system message after others"
                raise RowError(f"{what}: only the first message may be one", field=where)
            messages.append(message)
        return tuple(messages)

    def _message(self, turn: object, where: str) -> Message:
        if not isinstance(turn, Mapping):
            raise RowError(f"holds {describe(turn)} where an object is expected", field=where)
        speaker_key, text_key = (self.column(key) for key in self.scheme.keys)
        for key in (speaker_key, text_key):
            if key not in turn:
                raise RowError("is missing", field=f"{where}.{key}")
        self.ignored.update(f"{where.partition('[')[0]}[].{key}" for key in turn if key not in (speaker_key, text_key))
        speaker = _checked_text(turn[speaker_key], f"{where}.{speaker_key}")
        speakers = SPEAKERS if self.scheme.name == "conversations" else {role: role for role in ROLES}
        if speaker not in speakers:
            raise RowError(
                f"unknown role '{speaker}': expected one of {', '.join(speakers)}",
                field=f"{where}.{speaker_key}",
            )
        text = _checked_text(turn[text_key], f"{where}.{text_key}")
        role = speakers[speaker]
        if not text.strip() and role != "system":
            fault = Fault.EMPTY_ANSWER if role == "assistant" else Fault.OTHER
            raise RowError("is empty", field=f"{where}.{text_key}", fault=fault)
        return Message(role, text)


def _turns(value: object, column: str) -> list[object]:
    """The list of messages; CSV holds it as JSON, and `datasets` may store it as an object of lists."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = parse_json(value)
        except ValueError as error:
            raise RowError(str(error), field=column) from error
    if isinstance(value, Mapping) and value and all(isinstance(part, list) for part in value.values()):
        if len({len(part) for part in value.values()}) > 1:
            raise RowError("holds lists of different lengths", field=column)
        value = [dict(zip(value, parts, strict=True)) for parts in zip(*value.values(), strict=True)]
    if not isinstance(value, list):
        raise RowError(f"holds {describe(value)} where a list of messages is expected", field=column)
    if not value:
        raise RowError("is an empty list", field=column)
    return value


def _check_order(messages: tuple[Message, ...], column: str) -> None:
    if not messages or messages[-1].role != "assistant":
        last = messages[-1].role if messages else "system"
        raise RowError(f"ends with a message of the {last}: the last one must be the assistant's answer", field=column)
    if all(message.role != "user" for message in messages):
        raise RowError("has no message of the user", field=column)


def _checked_text(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise RowError(f"holds {describe(value)} where text is expected", field=field)
    if "\0" in value:
        raise RowError("holds a NUL character: is the file damaged?", field=field)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            code = ord(value[error.start])
            raise RowError(
                f"holds half of a character (\\u{code:04x}), which is not Unicode text", field=field
            ) from error
    return value


def describe(value: object) -> str:
    """Name a JSON value in a few words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"the truth value {str(value).lower()}"
    if isinstance(value, int | float):
        number = str(value) if not isinstance(value, int) or abs(value) < 10**30 else "of many digits"
        return f"the number {number}"
    if isinstance(value, str):
        return "text"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, Mapping):
        return "an object"
    return f"a value of type {type(value).__name__}"
