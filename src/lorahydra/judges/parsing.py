"""Reads verdicts out of replies: strictly about scores, patiently about what stands around them.

Accepted: JSON alone, in a code fence, behind a model's thoughts or between sentences, also with the slips of
`lorahydra.judges.loose_json`; scores from 0 to 5 as numbers or texts, and on another scale where each one states it
(`"8/10"`, `"80 %"`); criteria in any case, nested under `scores` or beside `reasoning`.

Refused, so that nothing is guessed: a missing criterion, a score outside 0…5, what may be a share of 1, a criterion
scored twice, two different verdicts, JSON that is cut, and a verdict that was copied from what is judged.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorahydra.judges.base import Fault, JudgeCase, JudgeFault
from lorahydra.judges.loose_json import BrokenObjectError, Twice, objects
from lorahydra.judges.prompt import MAX_SCORE
from lorahydra.judges.quoting import Quotations

__all__ = ["Opinion", "read_opinion"]

THOUGHTS = re.compile(r"^\s*<think(?:ing)?>.*?(?P<end></think(?:ing)?>|\Z)", re.DOTALL)
LONGEST_REASONING = 10_000
LONGEST_REPLY = 1_000_000
REASONING_KEYS = ("reasoning", "reason", "explanation", "рассуждение", "обоснование")
MAXIMUM_KEYS = ("max", "max_score", "maximum", "out_of", "scale")
WRITTEN = re.compile(
    r"\s*(?P<value>[+-]?\d+(?:[.,]\d+)?)\s*(?:(?:/|out of|of|из)\s*(?P<most>\d+(?:[.,]\d+)?)|(?P<percent>%))?\s*",
    re.IGNORECASE,
)
SCALE = re.compile(r"\s*(?:\d+\s*(?:-|–|…|\.\.\.?|to|до)\s*)?(?P<most>\d+(?:[.,]\d+)?)\s*")


@dataclass(frozen=True)
class Opinion:
    """What a reply says."""

    scores: dict[str, float]
    """0…5 for each criterion, in the rubric's order."""
    reasoning: str
    written: dict[str, float]
    """The same as numbers on the scale that the judge used."""


@dataclass(frozen=True)
class _Grade:
    """A score as it was written."""

    value: float
    most: float | None
    """Best score of the scale that is stated beside it; None where none is."""
    is_whole: bool
    """Whether it was written without decimals."""

    def may_be_share(self, above_one: bool) -> bool:
        """Whether it may be meant as a share of 1; `above_one` says that another score shows another scale."""
        if self.most is not None or not 0 < self.value <= 1 or self.is_whole:
            return False
        # A half is a step of the scale that is asked for.
        return not above_one or self.value not in (0.5, 1)


def read_opinion(
    text: str, criteria: Sequence[str], case: JudgeCase | None = None, *, fractions: bool = False
) -> Opinion:
    """Read a reply.

    Args:
        text: The reply as it came.
        criteria: The criteria that must be in it.
        case: What the judge was shown: verdicts that stand in it are not the judge's.
        fractions: Whether scores between 0 and 1 are meant, see `JudgeReply.fractions`.

    Raises:
        JudgeFault: `Fault.EMPTY` or `Fault.UNPARSEABLE`.
    """
    if not text.strip():
        raise JudgeFault(Fault.EMPTY)
    if len(text) > LONGEST_REPLY:
        raise JudgeFault(Fault.UNPARSEABLE, f"a reply of {len(text)} characters")
    text = _without_thoughts(text)
    opinions: list[Opinion] = []
    problem = "there is no JSON object in it"
    quotations = Quotations(case, criteria)
    try:
        for found in objects(_unwrapped(text)):
            try:
                opinion = _opinion(found, criteria, fractions)
            except ValueError as error:
                problem = str(error)
                continue
            if quotations.hold(opinion.written, opinion.reasoning):
                problem = "its verdict is copied from the text that is judged"
            else:
                opinions.append(opinion)
    except BrokenObjectError:
        if opinions:
            # Whatever was read may be a part of something else.
            opinions, problem = [], "a broken JSON object follows the verdict"
    if not opinions:
        raise JudgeFault(Fault.UNPARSEABLE, f"{problem}: {_start(text)}")
    if any(opinion.scores != opinions[0].scores for opinion in opinions):
        raise JudgeFault(Fault.UNPARSEABLE, f"it holds several different verdicts: {_start(text)}")
    return opinions[0]


def _without_thoughts(text: str) -> str:
    """The text behind a model's thoughts, whose drafts are not verdicts."""
    match = THOUGHTS.match(text)
    if match is None:
        return text
    if not match["end"]:
        raise JudgeFault(Fault.UNPARSEABLE, f"thoughts without an end: {_start(text)}")
    return text[match.end() :]


def _unwrapped(text: str) -> str:
    """The text itself, or what a reply that is one JSON string holds."""
    if text.lstrip().startswith('"'):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return text
        return str(found)
    return text


def _opinion(found: Mapping[str, Any], criteria: Sequence[str], fractions: bool) -> Opinion:
    fields = _by_lower_key(found)
    scores = fields.get("scores", fields)
    if not isinstance(scores, dict):
        raise ValueError("its scores are not an object")
    given = _by_lower_key(scores)
    if any(isinstance(value, Twice) for value in scores.values()):
        raise ValueError("a key stands in it twice")
    if missing := [name for name in criteria if name.lower() not in given]:
        raise ValueError(f"{missing[0]} has no score")
    reasoning = next((str(fields[key]) for key in REASONING_KEYS if key in fields), "")
    own = {name.lower() for name in criteria}
    most = _stated_maximum({key: value for key, value in (fields | given).items() if key not in own})
    grades = {name: _grade(name, given[name.lower()], most) for name in criteria}
    written = {name: grade.value for name, grade in grades.items()}
    return Opinion(_scores(grades, fractions), reasoning[:LONGEST_REASONING], written)


def _by_lower_key(found: Mapping[str, Any]) -> dict[str, Any]:
    lower = {str(key).strip().lower(): value for key, value in found.items()}
    if len(lower) < len(found) or isinstance(found, Twice):
        raise ValueError("a key stands in it twice")
    return lower


def _grade(name: str, value: object, most: float | None) -> _Grade:
    if isinstance(value, dict):  # {"score": 4, "comment": "…"}
        most = _stated_maximum(value) or most
        value = value.get("score", value)
    if isinstance(value, str) and (match := WRITTEN.fullmatch(value)):
        stated = 100.0 if match["percent"] else _number(match["most"])
        most = most if stated is None else stated
        written = match["value"].replace(",", ".")
        value = float(written) if "." in written else int(written)
    if isinstance(value, bool) or not isinstance(value, int | float) or most == 0:
        raise ValueError(f"the score of {name} is not a number")
    highest = MAX_SCORE if most is None else most
    if not 0 <= value <= highest:
        raise ValueError(f"the score of {name} is {str(value)[:20]}, not 0 to {highest:g}")
    return _Grade(float(value), most, isinstance(value, int))


def _scores(grades: Mapping[str, _Grade], fractions: bool) -> dict[str, float]:
    """The scores from 0 to 5; refuses those whose scale can only be guessed."""
    others = [grade.most for grade in grades.values() if grade.most not in (None, MAX_SCORE)]
    silent = [name for name, grade in grades.items() if grade.most is None]
    if others and silent:
        raise ValueError(f"one score is out of {others[0]:g}, and the one of {silent[0]} does not say out of what")
    above_one = any(grade.value > 1 for grade in grades.values())
    for name, grade in grades.items():
        if grade.may_be_share(above_one) and not fractions:
            raise ValueError(f"the score of {name} is {grade.value:g}, which may be a share of 1 instead of 0 to 5")
    return {name: grade.value * MAX_SCORE / (grade.most or MAX_SCORE) for name, grade in grades.items()}


def _stated_maximum(fields: Mapping[str, Any]) -> float | None:
    """The best score of the scale that an object names; None where it names none."""
    for key in MAXIMUM_KEYS:
        value = fields.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf"):
            return float(value)
        if isinstance(value, str):
            match = SCALE.fullmatch(value)
            most = _number(match["most"]) if match else None
            if not most:
                raise ValueError(f"its {key} cannot be read")
            return most
    return None


def _number(text: str | None) -> float | None:
    return None if text is None else float(text.replace(",", "."))


def _start(text: str) -> str:
    # Cut by the caller, after it was searched for secrets; the slice only keeps it cheap.
    return " ".join(text[:LONGEST_REASONING].split())
