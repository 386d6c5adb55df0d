"""Messages of a conversation as files write them: who speaks, what is said, and what else a message carries.

Besides the text, these keys of a message are used; any other key that holds something is reported:

| key | meaning |
|---|---|
| `weight`, `train` | 0 or false: this answer carries no loss |
| `tool_calls`, `function_call` | tool calls, for the chat template |
| `tool_call_id`, `name` (of a tool) | which call is answered, for the chat template |
| `reasoning_content` | the reasoning before the answer, for chat templates that have a place for it |
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lorahydra.data.examples import ROLES, Message
from lorahydra.data.problems import Fault, RowError
from lorahydra.data.readers.json_files import parse_json

__all__ = [
    *("checked_text", "describe", "list_of", "optional_text", "parsed", "read_history", "read_message", "read_tools"),
    "required",
]

SPEAKERS = {
    "system": "system",
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bot", "model", "function_call"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function_response"), "tool"),
}
"""Values of `from` in `conversations`, as ShareGPT and similar datasets write them."""
CALL = "function_call"
"""The speaker whose text is a call of a tool, and the message key that holds a call."""
LOSS_KEYS = ("weight", "train")
USED = {"assistant": (*LOSS_KEYS, "tool_calls", CALL, "reasoning_content"), "tool": ("tool_call_id", "name")}
"""Keys that a message may have besides its speaker and its text, by role."""


def read_message(entry: object, where: str, keys: tuple[str, str], *, sharegpt: bool) -> tuple[Message, set[str]]:
    """Turn one entry of a list of messages into a message; also returns the keys that hold something but are not used.

    `keys` name those for the speaker (with `sharegpt`, named as ShareGPT does) and the text.

    Raises:
        RowError: Something is missing, of the wrong type or empty.
    """
    turn = object_of(entry, where)
    speaker_key, text_key = keys
    field = f"{where}.{speaker_key}"
    speaker = checked_text(required(turn, speaker_key, field), field)
    speakers = SPEAKERS if sharegpt else {role: role for role in ROLES}
    if speaker not in speakers:
        raise RowError(f"unknown role '{speaker}': expected one of {', '.join(speakers)}", field=field)
    role = speakers[speaker]
    used = USED.get(role, ())
    extras = _extras(turn, role, where)
    if sharegpt and speaker == CALL:
        extras["tool_calls"] = _calls(turn.get(text_key), f"{where}.{text_key}")
        text = ""
    else:
        text = _text(turn, f"{where}.{text_key}", text_key, role, empty="tool_calls" in extras)
    ignored = {
        key
        for key, value in turn.items()
        # Outside an answer, a weight of 0 changes nothing.
        if key not in (*keys, *used) and not _is_nothing(value) and not (key in LOSS_KEYS and not value)
    }
    learned = role != "assistant" or _is_learned(turn, where)
    return Message(role, text, _json(extras, where) if extras else "", learned), ignored


def _text(turn: Mapping[str, Any], where: str, key: str, role: str, *, empty: bool) -> str:
    """What is said; it may be empty beside a call, from a tool, and in a system message."""
    value = turn.get(key) if empty else required(turn, key, where)
    text = "" if value is None and empty else checked_text(value, where)
    if not text.strip() and not empty and role in ("user", "assistant"):
        raise RowError("is empty", field=where, fault=Fault.EMPTY_ANSWER if role == "assistant" else Fault.OTHER)
    return text


def _is_learned(turn: Mapping[str, Any], where: str) -> bool:
    given = {key: turn[key] for key in LOSS_KEYS if turn.get(key) is not None}
    for key, value in given.items():
        if value not in (0, 1):
            raise RowError(f"holds {describe(value)} where 0 or 1 is expected", field=f"{where}.{key}")
    return all(given.values())


def _extras(turn: Mapping[str, Any], role: str, where: str) -> dict[str, Any]:
    """What the chat template gets besides role and text."""
    extras: dict[str, Any] = {}
    for key in USED.get(role, ()):
        value = turn.get(key)
        if key in LOSS_KEYS or _is_nothing(value):
            continue
        if key in ("tool_calls", CALL):
            if calls := _calls(value, f"{where}.{key}"):
                extras["tool_calls"] = calls
        else:
            extras[key] = checked_text(value, f"{where}.{key}")
    return extras


def _calls(value: object, field: str) -> list[dict[str, Any]]:
    """Calls of tools as chat templates expect them: `{"type": "function", "function": {"name", "arguments"}}`."""
    value = parsed(value, field)
    entries = [value] if isinstance(value, Mapping) else list_of(value, field, "calls")
    return [_call(entry, f"{field}[{number}]") for number, entry in enumerate(entries)]


def _call(entry: object, field: str) -> dict[str, Any]:
    entry = object_of(without_nulls(parsed(entry, field)), field)
    function = entry.pop("function", None)
    if function is None:
        function = {key: entry.pop(key) for key in ("name", "arguments") if key in entry}
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise RowError("does not name a function", field=field)
    arguments = object_of(parsed(function.get("arguments", {}), f"{field}.arguments"), f"{field}.arguments")
    return {"type": "function", **entry, "function": {**function, "arguments": arguments}}


def read_tools(value: object, field: str) -> str:
    """A column of tools (a list, or its JSON) as a JSON list of objects; empty where there are none.

    Raises:
        RowError: It is not such a list.
    """
    if _is_nothing(value):
        return ""
    tools = [without_nulls(parsed(tool, field)) for tool in list_of(parsed(value, field), field, "tools")]
    for tool in tools:
        if not isinstance(tool, dict):
            raise RowError(f"holds {describe(tool)} where the description of a tool is expected", field=field)
    return _json(tools, field) if tools else ""


def read_history(value: object, field: str) -> list[Message]:
    """A column of earlier turns (a list of pairs, or its JSON) as messages of user and assistant.

    Raises:
        RowError: It is not such a list, or a text is empty.
    """
    if _is_nothing(value):
        return []
    messages = []
    for number, pair in enumerate(list_of(parsed(value, field), field, "pairs of question and answer")):
        where = f"{field}[{number}]"
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise RowError(f"holds {describe(pair)} where a pair of question and answer is expected", field=where)
        for role, text in zip(("user", "assistant"), pair, strict=True):
            if not checked_text(text, where).strip():
                raise RowError(f"the text of the {role} is empty", field=where)
            messages.append(Message(role, text))
    return messages


def required(values: Mapping[str, Any], key: str, field: str | None = None) -> Any:
    """The value of a column or key that has to be there; `field` names it in the error where its name does not."""
    if key not in values:
        raise RowError("is missing", field=field or key)
    return values[key]


def object_of(value: object, field: str) -> dict[str, Any]:
    """The value, which has to be an object."""
    if not isinstance(value, Mapping):
        raise RowError(f"holds {describe(value)} where an object is expected", field=field)
    return dict(value)


def list_of(value: object, field: str, what: str) -> list[object]:
    """The value, which has to be a list."""
    if not isinstance(value, list):
        raise RowError(f"holds {describe(value)} where a list of {what} is expected", field=field)
    return value


def parsed(value: object, field: str) -> Any:
    """The value that a JSON text stands for, as CSV holds lists and objects; other values as they are."""
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value)
    except ValueError as error:
        raise RowError(str(error), field=field) from error


def without_nulls(value: Any) -> Any:
    """The value without fields that hold null: Parquet gives each object the fields of all the others."""
    if isinstance(value, Mapping):
        return {key: without_nulls(part) for key, part in value.items() if part is not None}
    return [without_nulls(part) for part in value] if isinstance(value, list) else value


def _is_nothing(value: object) -> bool:
    return value is None or value == [] or (isinstance(value, str) and not value.strip())


def _json(value: object, field: str) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    except TypeError as error:
        raise RowError(f"holds what JSON cannot: {error}", field=field) from error
    return checked_text(text, field)


def checked_text(value: object, field: str) -> str:
    """The value, which has to be Unicode text.

    Raises:
        RowError: It is not.
    """
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


def optional_text(value: object, field: str) -> str:
    """The text of a field that may be empty; null and white space are nothing.

    Raises:
        RowError: It is not text.
    """
    text = "" if value is None else checked_text(value, field)
    return text if text.strip() else ""


def describe(value: object) -> str:
    """Name a JSON value in a few words."""
    match value:
        case None:
            return "null"
        case bool():
            return f"the truth value {str(value).lower()}"
        case int() | float():
            return f"the number {value if isinstance(value, float) or abs(value) < 10**30 else 'of many digits'}"
        case str():
            return "text"
        case list():
            return "a list"
        case Mapping():
            return "an object"
    return f"a value of type {type(value).__name__}"
