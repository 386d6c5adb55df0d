"""Checks of configuration values; each raises a `ConfigError` that names the key, the value and what is allowed."""

from __future__ import annotations

import codecs
import difflib
import functools
import math
import re
from collections.abc import Callable, Collection, Iterable
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from lorahydra.errors import ConfigError

__all__ = [
    "at_least",
    "check_types",
    "did_you_mean",
    "lost_keys",
    "names_a_folder",
    "not_blank",
    "one_of",
    "only_keys",
    "text_encoding",
    "type_hints",
    "within",
    "wrong_type",
]

NOT_OF_FILES = ("idna", "punycode", "raw-unicode-escape", "undefined", "unicode-escape")
WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list of texts",
    list[float]: "a list of numbers",
    dict: "a mapping",
    NoneType: "null",
}

type_hints: Callable[[Any], dict[str, Any]] = functools.cache(get_type_hints)
"""The type of each field of a dataclass, by name."""


def check_types(group: str, config: object) -> None:
    """Check that each field of a dataclass has a value of its type, which names the choices where there are some."""
    for name, kind in type_hints(type(config)).items():
        value = getattr(config, name)
        if not any(_fits(value, part) for part in _parts(kind)):
            raise wrong_type(f"{group}.{name}".lstrip("."), value, kind)


def wrong_type(key: str, value: object, kind: Any) -> ConfigError:
    """The error of a value that does not have the type of its key."""
    words = [WORDS.get(part) or WORDS.get(get_origin(part) or part, str(part)) for part in _parts(kind)]
    hint = did_you_mean(str(value), [word for word in words if word not in WORDS.values()])
    if set(words) & {*WORDS.values()}:
        return ConfigError(f"{key}={value} is not allowed{hint}: give {' or '.join(words)}")
    return ConfigError(f"{key}={value} is not allowed{hint}: choose one of {', '.join(sorted(words))}")


def _parts(kind: Any) -> tuple[Any, ...]:
    """The types and values that a type consists of."""
    if get_origin(kind) in (Union, UnionType):
        return tuple(part for member in get_args(kind) for part in _parts(member))
    return get_args(kind) if get_origin(kind) is Literal else (kind,)


def _fits(value: object, part: Any) -> bool:
    kind = get_origin(part) or part
    if not isinstance(kind, type):
        return type(value) is type(part) and value == part
    if isinstance(value, bool):
        return kind is bool
    if kind is list:
        return isinstance(value, list) and all(_fits(entry, *get_args(part)) for entry in value)
    return isinstance(value, (int, float) if kind is float else kind)


def at_least(key: str, value: float | str | None, low: float, *, exclusive: bool = False) -> None:
    """Check that a number is finite and at least (with `exclusive`, above) `low`; None and words pass."""
    if value is None or isinstance(value, str):
        return
    # A whole number may be too large for `math.isfinite`.
    if not low <= value < math.inf or (exclusive and value == low):
        raise ConfigError(f"{key}={value} is not allowed: it must be {'above' if exclusive else 'at least'} {low:g}")


def within(key: str, value: float, low: float, high: float, *, below: bool = False) -> None:
    """Check `low <= value <= high`, or `low <= value < high` with `below`."""
    if not low <= value <= high or (below and value == high):
        limit = "and below" if below else "to"
        raise ConfigError(f"{key}={value} is not allowed: it must be from {low:.12g} {limit} {high:.12g}")


def one_of(key: str, value: object, allowed: Collection[str]) -> None:
    """Check that `value` is one of the allowed values."""
    if value not in allowed:
        raise ConfigError(f"{key}={value} is not allowed: choose one of {', '.join(sorted(allowed))}")


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """A hint at the allowed name that is most like `name`, in brackets; empty if none is."""
    close = difflib.get_close_matches(name, list(allowed), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def only_keys(key: str, given: Iterable[str], allowed: Collection[str]) -> None:
    """Check that a dictionary of settings has no keys but the allowed ones."""
    for name in given:
        if name not in allowed:
            raise ConfigError(
                f"unknown key {key}.{name}{did_you_mean(name, allowed)}: {key} may have {', '.join(sorted(allowed))}"
            )


def lost_keys(setting: str, part: str) -> ConfigError:
    """The error of a setting that takes away all keys of Hydra's `launcher` or `sweeper`."""
    return ConfigError(
        f"{setting} takes the keys of hydra.{part} away: choose another by hydra/{part}=NAME, and change a key by "
        f"hydra.{part}.KEY=VALUE"
    )


def not_blank(key: str, value: str) -> None:
    """Check that a text is not empty or blank."""
    if not value.strip():
        raise ConfigError(f"{key} is empty: give a value")


def text_encoding(key: str, value: str) -> None:
    """Check that a value names a character encoding."""
    try:
        # Some of Python's codecs turn bytes into bytes, and some decode escapes that belong to the file format.
        "".encode(value)
        is_encoding = codecs.lookup(value).name not in NOT_OF_FILES
    except (LookupError, ValueError):
        is_encoding = False
    if not is_encoding:
        raise ConfigError(
            f"{key}={value} is not a character encoding: give its name, for example utf-8, windows-1251 or shift_jis"
        )


def names_a_folder(key: str, value: str) -> None:
    """Check that a name can be the name of a folder on any system."""
    if not re.fullmatch(r"\w[\w.+-]{0,99}", value):
        raise ConfigError(
            f"{key}={value} is not allowed: use up to 100 letters, digits, '.', '_', '+' and '-', as it also names a "
            "folder"
        )
