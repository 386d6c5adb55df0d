"""How many fields of a JSON document are as they should be."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from lorahydra.errors import MetricError
from lorahydra.metrics.loading import MetricScores

__all__ = ["json_fields"]

FENCE = re.compile(r"\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*", re.DOTALL | re.IGNORECASE)


def json_fields(prompts: Sequence[str], references: Sequence[str], predictions: Sequence[str]) -> MetricScores:
    """The share of fields that prediction and reference have with the same value, of all fields that either has.

    A field is a value that is not an object or a list, with its path; a value in a list has its position in it. What
    is not valid JSON scores 0; a fence of three backticks around it is allowed. `valid` is the share of valid
    predictions.

    Raises:
        MetricError: A reference is not JSON.
    """
    scores, valid = [], 0
    for place, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        try:
            expected = set(_fields(_parsed(reference)))
        except ValueError as error:
            raise MetricError(f"metric json_fields: the reference of example {place + 1} is not JSON") from error
        try:
            given = set(_fields(_parsed(prediction)))
        except (ValueError, RecursionError):
            scores.append(0.0)
            continue
        valid += 1
        either = len(given | expected)
        scores.append(len(given & expected) / either if either else 1.0)
    return MetricScores(scores, {"json_fields_valid": valid / len(scores)} if scores else {})


def _parsed(text: str) -> Any:
    fenced = FENCE.fullmatch(text)
    return json.loads(fenced[1] if fenced else text)


def _fields(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Each field with its path; an empty object or list is a field, too."""
    if isinstance(value, dict) and value:
        for key, entry in value.items():
            yield from _fields(entry, (*path, key))
    elif isinstance(value, list) and value:
        for place, entry in enumerate(value):
            yield from _fields(entry, (*path, place))
    else:
        # 1 and 1.0 are the same number, while 1 and true are not the same value.
        number = isinstance(value, int | float) and not isinstance(value, bool)
        yield path, repr(float(value)) if number else json.dumps(value)
