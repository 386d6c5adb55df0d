"""Reads verdicts out of replies: strictly about scores, patiently about what stands around them.

Accepted: JSON alone, in a code fence, behind a model's thoughts or between sentences; scores as numbers or as `"4"` and
`"4/5"`; criteria in any case, nested under `scores` or beside `reasoning`. Refused, so that nothing is guessed: a
missing criterion, a score outside 0…5, a criterion scored twice, two different verdicts, JSON that is cut.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorahydra.judges.base import Fault, JudgeFault
from lorahydra.judges.prompt import HIGHEST

__all__ = ["Opinion", "read_opinion"]

THOUGHTS = re.compile(r"^\s*<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL)
LOOKS_LIKE_JSON = re.compile(r'\{\s*"')
LONGEST_REASONING = 10_000
LONGEST_REPLY = 1_000_000
REASONING_KEYS = ("reasoning", "reason", "explanation", "рассуждение", "обоснование")


@dataclass(frozen=True)
class Opinion:
    """What a reply says."""

    scores: dict[str, float]
    """0…5 for each criterion, in the rubric's order."""
    reasoning: str


def read_opinion(text: str, criteria: Sequence[str]) -> Opinion:
    """Read a reply.

    Args:
        text: The reply as it came.
        criteria: The criteria that must be in it.

    Raises:
        JudgeFault: `Fault.EMPTY` or `Fault.UNPARSEABLE`.
    """
    if not text.strip():
        raise JudgeFault(Fault.EMPTY)
    if len(text) > LONGEST_REPLY:
        raise JudgeFault(Fault.UNPARSEABLE, f"a reply of {len(text)} characters")
    text = THOUGHTS.sub("", text)
    opinions: list[Opinion] = []
    problem = "there is no JSON object in it"
    for found in _objects(text):
        try:
            opinions.append(_opinion(found, criteria))
        except ValueError as error:
            problem = str(error)
    if not opinions:
        raise JudgeFault(Fault.UNPARSEABLE, f"{problem}: {_start(text)}")
    if any(opinion.scores != opinions[0].scores for opinion in opinions):
        raise JudgeFault(Fault.UNPARSEABLE, f"it holds several different verdicts: {_start(text)}")
    return opinions[0]


def _objects(text: str) -> Iterator[Mapping[str, Any]]:
    """The outermost JSON objects in `text`; one with a key twice is a `_Twice`."""
    decoder = json.JSONDecoder(object_pairs_hook=_unique)
    position = text.find("{")
    while position >= 0:
        try:
            found, position = decoder.raw_decode(text, position)
            yield found
        except (ValueError, RecursionError):
            if LOOKS_LIKE_JSON.match(text, position):
                # Broken or cut: what stands inside it may be a quotation, and is not looked at.
                return
            position += 1
        position = text.find("{", position)


class _Twice(dict[str, Any]):
    """An object in which a key stands twice."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    return found if len(found) == len(pairs) else _Twice(found)


def _opinion(found: Mapping[str, Any], criteria: Sequence[str]) -> Opinion:
    fields = {str(key).strip().lower(): value for key, value in found.items()}
    scores = fields.get("scores", fields)
    if not isinstance(scores, dict):
        raise ValueError("its scores are no object")
    given = {str(key).strip().lower(): value for key, value in scores.items()}
    parts = (found, scores, *scores.values())
    if any(isinstance(part, _Twice) for part in parts) or len(given) < len(scores) or len(fields) < len(found):
        raise ValueError("a key stands in it twice")
    if missing := [name for name in criteria if name.lower() not in given]:
        raise ValueError(f"{missing[0]} has no score")
    reasoning = next((str(fields[key]) for key in REASONING_KEYS if key in fields), "")
    return Opinion({name: _score(name, given[name.lower()]) for name in criteria}, reasoning[:LONGEST_REASONING])


def _score(name: str, value: object) -> float:
    if isinstance(value, dict):  # {"score": 4, "comment": "…"}
        value = value.get("score", value)
    if isinstance(value, str) and (match := re.fullmatch(rf"\s*(\d+(?:[.,]\d+)?)\s*(?:/\s*{HIGHEST})?\s*", value)):
        value = float(match[1].replace(",", "."))
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"the score of {name} is no number")
    if not 0 <= value <= HIGHEST:
        raise ValueError(f"the score of {name} is {str(value)[:20]}, not 0 to {HIGHEST}")
    return float(value)


def _start(text: str) -> str:
    # Cut by the caller, after it was searched for secrets; the slice only keeps it cheap.
    return " ".join(text[:LONGEST_REASONING].split())
