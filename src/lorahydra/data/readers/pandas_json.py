"""Tables written as one JSON object: `DataFrame.to_json` of pandas in its forms, and columns as lists."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Set
from typing import Any

from lorahydra.errors import one_line

__all__ = ["frame_rows"]

SPLIT_KEYS = {"columns", "index", "data"}
ADVICE = "save it with orient='records'"
SPEAKERS = {"role", "from"}

Rows = list[dict[str, Any]]


def frame_rows(value: Mapping[str, Any], columns: Set[str]) -> Rows | None:
    """The rows of an object that is a table; None if it is not one.

    Read are `orient='split'`, `'columns'` and `'index'`, and an object with a list for each column. The names that
    columns may have distinguish a column of rows from a row of columns.

    Raises:
        ValueError: It is a broken table; the message is for the user.
    """
    if {"columns", "data"} <= set(value) <= SPLIT_KEYS:
        return _split(value["columns"], value["data"])
    parts = list(value.values())
    named = not columns.isdisjoint(value)
    if parts and all(isinstance(part, Mapping) and part for part in parts):
        inside = any(not columns.isdisjoint(part) for part in parts)
        if inside and not named:
            return [dict(part) for part in parts]
        # `datasets` may store one conversation in a form like that.
        turns = not SPEAKERS.isdisjoint(parts[0])
        return _columns(value) if named and not inside and not turns else None
    plain = all(isinstance(part, list) and not any(isinstance(item, Mapping) for item in part) for part in parts)
    return _lists(value) if named and plain else None


def _split(columns: object, data: object) -> Rows | None:
    if not isinstance(columns, list) or not isinstance(data, list) or not all(isinstance(x, list) for x in data):
        return None
    names = [str(name) for name in columns]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"the table has two columns named '{one_line(twice[0])}'")
    for number, row in enumerate(data, start=1):
        if len(row) != len(names):
            raise ValueError(f"row {number} has {len(row)} values where the table has {len(names)} columns: {ADVICE}")
    return [dict(zip(names, row, strict=True)) for row in data]


def _columns(value: Mapping[str, Mapping[str, Any]]) -> Rows:
    labels = list(next(iter(value.values())))
    if any(part.keys() != set(labels) for part in value.values()):
        raise ValueError(f"the columns of the table have different rows: {ADVICE}")
    return [{name: part[label] for name, part in value.items()} for label in labels]


def _lists(value: Mapping[str, list[Any]]) -> Rows:
    lengths = {name: len(part) for name, part in value.items()}
    if len(set(lengths.values())) > 1:
        shown = one_line(", ".join(f"{name} {length}" for name, length in lengths.items()))
        raise ValueError(f"the columns of the table have different lengths ({shown}): {ADVICE}")
    return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
