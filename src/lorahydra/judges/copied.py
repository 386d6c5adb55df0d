"""Verdicts that are not the judge's own: it copied them from the request, the reference or the answer."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence

from lorahydra.judges.base import JudgeCase

__all__ = ["is_copied", "mask_scores"]

NUMBER = re.compile(r"\d+(?:[.,]\d+)?")
REACH = 1000
"""Characters after the name of a criterion in which its score may stand."""
CODE = re.compile(r"\\u([0-9a-fA-F]{4})")


def is_copied(written: Mapping[str, float], reasoning: str, shown: JudgeCase) -> bool:
    """Whether a verdict stands in the texts: each score after its criterion's name, and the reasoning too.

    A judge that gives the same scores for reasons of its own is believed.
    """
    scores, letters = _scores_in(shown, tuple(written))
    return all(score in scores[name] for name, score in written.items()) and _letters(_decoded(reasoning)) in letters


def mask_scores(case: JudgeCase, criteria: Sequence[str]) -> JudgeCase:
    """The case with `#` for each digit that follows a criterion's name, so that no verdict can be copied.

    It is the case itself where its texts do not name a score for every criterion.
    """
    scores, _ = _scores_in(case, tuple(criteria))
    if not all(scores.values()):
        return case
    names = re.compile("|".join(re.escape(name) for name in criteria), re.IGNORECASE)
    return JudgeCase(*(_masked(text, names) for text in (case.question, case.reference, case.answer)))


@functools.lru_cache(maxsize=32)
def _scores_in(case: JudgeCase, criteria: tuple[str, ...]) -> tuple[dict[str, set[float]], str]:
    """For each criterion the numbers that follow its name in the texts, and the letters of the texts."""
    shown = _decoded("\n".join((case.question, case.reference, case.answer)))
    scores: dict[str, set[float]] = {name: set() for name in criteria}
    for name, numbers in scores.items():
        for match in re.finditer(re.escape(name), shown, re.IGNORECASE):
            near = shown[match.end() : match.end() + REACH]
            numbers.update(float(number.replace(",", ".")) for number in NUMBER.findall(near))
    return scores, _letters(shown) if all(scores.values()) else ""


def _masked(text: str, names: re.Pattern[str]) -> str:
    masked = list(text)
    done = 0
    for match in names.finditer(text):
        end = min(match.end() + REACH, len(text))
        for position in range(max(match.end(), done), end):
            if text[position].isdecimal():
                masked[position] = "#"
        done = end
    return "".join(masked)


def _decoded(text: str) -> str:
    """The text with the characters that JSON's escapes stand for."""
    return CODE.sub(lambda match: chr(int(match[1], 16)), text)


def _letters(text: str) -> str:
    """The letters and digits of a text: what stays the same in whichever way it is quoted."""
    return "".join(char for char in text.casefold() if char.isalnum())
