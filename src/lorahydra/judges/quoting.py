"""Verdicts that are not the judge's: they stand in the request, the reference or the answer, and were copied."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from lorahydra.judges.base import JudgeCase

__all__ = ["Quotations", "without_scores"]

NUMBER = re.compile(r"\d+(?:[.,]\d+)?")
REACH = 1000
"""Characters behind the name of a criterion in which its score may stand."""
CODE = re.compile(r"\\u([0-9a-fA-F]{4})")


class Quotations:
    """The scores and words that stand in what a judge is shown.

    Args:
        case: What it is shown; None where that does not matter.
        criteria: Names of the criteria.
    """

    def __init__(self, case: JudgeCase | None, criteria: Sequence[str]) -> None:
        texts = () if case is None else (case.question, case.reference, case.answer)
        shown = _decoded("\n".join(texts))
        self._scores = {name: _numbers(name, shown) for name in criteria}
        self._words = _letters(shown) if all(self._scores.values()) else ""

    @property
    def are_possible(self) -> bool:
        """Whether the texts name a score for every criterion."""
        return all(self._scores.values())

    def hold(self, scores: Mapping[str, float], reasoning: str) -> bool:
        """Whether a verdict is copied: each score stands behind its criterion, and the reasoning there too.

        A judge that gives the same scores for reasons of its own is believed.

        Args:
            scores: For each criterion, the number as it was written.
            reasoning: What was said.
        """
        if not self.are_possible or any(score not in self._scores[name] for name, score in scores.items()):
            return False
        return _letters(_decoded(reasoning)) in self._words


def without_scores(case: JudgeCase, criteria: Sequence[str]) -> JudgeCase:
    """The case with `#` for each digit that stands behind a criterion's name, so that no verdict can be copied.

    Args:
        case: What is judged.
        criteria: Names of the criteria.

    Returns:
        The case itself where its texts do not name a score for every criterion.
    """
    if not Quotations(case, criteria).are_possible:
        return case
    names = re.compile("|".join(re.escape(name) for name in criteria), re.IGNORECASE)
    return JudgeCase(*(_masked(text, names) for text in (case.question, case.reference, case.answer)))


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


def _numbers(name: str, text: str) -> set[float]:
    """The numbers that stand behind a name."""
    found: set[float] = set()
    for match in re.finditer(re.escape(name), text, re.IGNORECASE):
        near = text[match.end() : match.end() + REACH]
        found |= {float(number.replace(",", ".")) for number in NUMBER.findall(near)}
    return found


def _decoded(text: str) -> str:
    """The text with the characters that JSON's escapes stand for."""
    return CODE.sub(lambda match: chr(int(match[1], 16)), text)


def _letters(text: str) -> str:
    """The letters and digits of a text: what is left of it whichever way it is quoted."""
    return "".join(char for char in text.casefold() if char.isalnum())
