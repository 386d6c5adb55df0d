"""Reads verdicts from replies: strict about scores, tolerant of whatever surrounds them.

Accepted: JSON alone, in a code fence, after a model's thoughts or between sentences, also with the slips that
`lorahydra.judges.loose_json` reads; scores from 0 to 5 as numbers or texts, and on another scale if each one states it
(`"8/10"`, `"80 %"`); criteria in upper or lower case, nested under `scores` or beside `reasoning`.

Refused, because nothing is guessed: a missing criterion, a score outside 0…5, a number that may be a share of 1, a
criterion scored twice, two different verdicts, truncated JSON, and a verdict that was copied from what is judged.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from lorahydra.config.judge import RubricConfig
from lorahydra.judges.base import Fault, JudgeCase, JudgeFault, JudgeReply, Verdict
from lorahydra.judges.copied import is_copied
from lorahydra.judges.loose_json import DuplicateKeys, objects
from lorahydra.judges.prompt import MAX_SCORE

__all__ = ["read_verdict"]

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


class _Grade(NamedTuple):
    """A score as it was written."""

    value: float
    most: float | None
    """Best score of the scale that is stated beside it; None if no scale is stated."""
    may_be_share: bool
    """Whether it may be meant as a share of 1: it has decimals and no scale is stated."""


def read_verdict(reply: JudgeReply, rubric: RubricConfig, shown: JudgeCase | None = None) -> Verdict:
    """Read a reply.

    Args:
        reply: As it came; its secrets are still in it, and so in the verdict.
        rubric: The criteria that must be scored, and their weights.
        shown: What the judge was shown: verdicts that stand in it are not the judge's own.

    Raises:
        JudgeFault: `Fault.EMPTY` or `Fault.UNPARSEABLE`.
    """
    if not reply.text.strip():
        raise JudgeFault(Fault.EMPTY)
    if len(reply.text) > LONGEST_REPLY:
        raise JudgeFault(Fault.UNPARSEABLE, f"a reply of {len(reply.text)} characters")
    text = _without_thoughts(reply.text)
    verdicts: list[Verdict] = []
    problem = "there is no JSON object in it"
    try:
        for parsed in objects(_unwrapped(text)):
            try:
                verdicts.append(_verdict(parsed, reply, rubric, shown))
            except ValueError as error:
                problem = str(error)
    except ValueError:
        if verdicts:
            # What was read may be a part of something else.
            verdicts, problem = [], "a broken JSON object follows the verdict"
    if not verdicts:
        raise JudgeFault(Fault.UNPARSEABLE, f"{problem}: {_start(text)}")
    if any(verdict.scores != verdicts[0].scores for verdict in verdicts):
        raise JudgeFault(Fault.UNPARSEABLE, f"it holds several different verdicts: {_start(text)}")
    return verdicts[0]


def _without_thoughts(text: str) -> str:
    """The text after a model's thoughts, whose drafts are not verdicts."""
    match = THOUGHTS.match(text)
    if match is None:
        return text
    if not match["end"]:
        raise JudgeFault(Fault.UNPARSEABLE, f"thoughts without an end: {_start(text)}")
    return text[match.end() :]


def _unwrapped(text: str) -> str:
    """The text itself, or the content of a reply that is one JSON string."""
    if text.lstrip().startswith('"'):
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            return text
        return str(content)
    return text


def _verdict(parsed: Mapping[str, Any], reply: JudgeReply, rubric: RubricConfig, shown: JudgeCase | None) -> Verdict:
    fields = _by_lower_key(parsed)
    given = fields.get("scores", fields)
    if not isinstance(given, dict):
        raise ValueError("its scores are not an object")
    if any(isinstance(value, DuplicateKeys) for value in given.values()):
        raise ValueError("it has the same key twice")
    given = _by_lower_key(given)
    criteria = {name: name.lower() for name in rubric.criteria}
    if missing := [name for name, key in criteria.items() if key not in given]:
        raise ValueError(f"{missing[0]} has no score")
    others = {key: value for key, value in (fields | given).items() if key not in criteria.values()}
    most = _stated_maximum(others)
    grades = {name: _grade(name, given[key], most) for name, key in criteria.items()}
    scores = _scores(grades, reply.fractions)
    reasoning = next((str(fields[key]) for key in REASONING_KEYS if key in fields), "")[:LONGEST_REASONING]
    # Scores that were computed are not copied from anywhere.
    written = {name: grade.value for name, grade in grades.items()}
    if shown is not None and not reply.fractions and is_copied(written, reasoning, shown):
        raise ValueError("its verdict is copied from the text that is judged")
    weights = {name: criterion.weight for name, criterion in rubric.criteria.items()}
    return Verdict(
        scores=scores,
        score=100 * sum(weights[name] * score for name, score in scores.items()) / (MAX_SCORE * sum(weights.values())),
        reasoning=reasoning,
        raw_reply=reply.text,
        model=reply.model,
        prompt_tokens=reply.prompt_tokens,
        completion_tokens=reply.completion_tokens,
    )


def _by_lower_key(values: Mapping[str, Any]) -> dict[str, Any]:
    lower = {str(key).strip().lower(): value for key, value in values.items()}
    if len(lower) < len(values) or isinstance(values, DuplicateKeys):
        raise ValueError("it has the same key twice")
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
    return _Grade(float(value), most, most is None and 0 < value <= 1 and not isinstance(value, int))


def _scores(grades: Mapping[str, _Grade], fractions: bool) -> dict[str, float]:
    """The scores from 0 to 5; raises ValueError if their scale could only be guessed."""
    others = [grade.most for grade in grades.values() if grade.most not in (None, MAX_SCORE)]
    silent = [name for name, grade in grades.items() if grade.most is None]
    if others and silent:
        raise ValueError(f"one score is out of {others[0]:g}, and the score of {silent[0]} states no scale")
    # Beside a score above 1 the scale is another, of which a half is a step that is asked for.
    steps = (0.5, 1) if any(grade.value > 1 for grade in grades.values()) else ()
    for name, grade in grades.items():
        if grade.may_be_share and grade.value not in steps and not fractions:
            raise ValueError(f"the score of {name} is {grade.value:g}, which may be a share of 1 instead of 0 to 5")
    return {name: grade.value * MAX_SCORE / (grade.most or MAX_SCORE) for name, grade in grades.items()}


def _stated_maximum(fields: Mapping[str, Any]) -> float | None:
    """The best score of the scale that an object names; None if it names none."""
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
    # The caller cuts it after removing secrets; the slice only keeps that cheap.
    return " ".join(text[:LONGEST_REASONING].split())
