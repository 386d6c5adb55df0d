"""Values as people read them: scores, durations, sizes, money, times, text from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

from lorahydra.names import SCORES, Score, State
from lorahydra.service.pages.words import Words
from lorahydra.service.views import BaselineView, LeaderboardRow

__all__ = ["NONE", "Shapes", "plain", "shown_rows", "trial_names"]

NONE = "–"
"""Shown where there is no value."""
MINUTE, HOUR = 60, 3600
UNITS = (("day", 24 * HOUR), ("hour", HOUR), ("minute", MINUTE), ("second", 1))
ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
"""ANSI escapes: colours and cursor movements, window titles, single commands."""
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Characters that cannot be shown, or that change the direction of the text around them."""


def plain(text: str) -> str:
    """Text from a log or a model without terminal commands; of an overwritten line only its last content is left."""
    lines = ESCAPES.sub("", text).replace("\r\n", "\n").split("\n")
    return "\n".join(CONTROLS.sub("", line.rstrip("\r").rpartition("\r")[2]) for line in lines)


def shown_rows(rows: Sequence[LeaderboardRow]) -> list[LeaderboardRow]:
    """The trials without interrupted ones that another trial has repeated."""
    begun = {row.trial for row in rows if row.state != State.INTERRUPTED}
    return [row for row in rows if row.state != State.INTERRUPTED or row.trial not in begun]


def trial_names(rows: Sequence[LeaderboardRow]) -> Callable[[int | None], str]:
    """What people call the trial with a number of the program: they count from 1."""
    names = {row.number: row.trial for row in rows}
    return lambda number: NONE if number is None else str(names.get(number, number + 1))


class Shapes:
    """Values in the language of `words`."""

    def __init__(self, words: Words) -> None:
        self._words = words

    plain = staticmethod(plain)

    def score(self, value: float | None, score: Score = Score.COMBINED) -> str:
        """A score with as many digits as it has elsewhere."""
        return NONE if value is None else self._words.number(value, SCORES[score].digits)

    def tick(self, value: float) -> str:
        """A label of the chart, without trailing zeros."""
        text = f"{value:.4f}".rstrip("0").rstrip(".")
        return self._words.number(value, len(text.partition(".")[2]))

    def gain(self, value: float) -> str:
        """A difference of scores, with its sign."""
        return ("+" if value >= 0 else "−") + self.score(abs(value), Score.GAIN)

    def judge(self, value: float | None) -> str:
        """A judge's score from 0 to 100."""
        return self.score(value, Score.JUDGE_SCORE)

    def probability(self, value: float | None) -> str:
        """A probability from 0 to 1."""
        return NONE if value is None else self._words.number(value, 2)

    def megabytes(self, count: int | None) -> str:
        """The size of an adapter; two that differ a little still look different."""
        return NONE if count is None else f"{self._words.number(count / 1e6, 2)} {self._words('unit.mb')}"

    def interval(self, row: LeaderboardRow | BaselineView) -> str:
        """Both ends of the interval."""
        if row.combined_low is None or row.combined_high is None:
            return NONE
        return f"{self.score(row.combined_low)} … {self.score(row.combined_high)}"

    def duration(self, seconds: float | None) -> str:
        """At most two units, for example `2 h 5 min`."""
        if seconds is None:
            return NONE
        whole = round(seconds)
        if 10 * MINUTE <= whole < HOUR:
            return self._words("unit.minute", n=round(whole / MINUTE))
        for (unit, size), (smaller, step) in pairwise(UNITS):
            if whole >= size:
                text, rest = self._words(f"unit.{unit}", n=whole // size), whole % size // step
                return f"{text} {self._words(f'unit.{smaller}', n=rest)}" if rest else text
        return self._words("unit.second", n=whole)

    def moment(self, moment: datetime) -> str:
        """Date and time in UTC; the page's script shows the reader's time in place of it."""
        there = moment.astimezone(UTC)
        date = {"day": str(there.day), "month": self._words(f"month.{there.month}"), "year": str(there.year)}
        return self._words("time.moment", **date, clock=there.strftime("%H:%M"))

    def size(self, count: int) -> str:
        """A size in bytes."""
        value, unit = float(count), "byte"
        for unit in ("byte", "kib", "mib", "gib"):
            if value < 1024 or unit == "gib":
                break
            value /= 1024
        return f"{self._words.number(value, 0 if unit == 'byte' or value >= 100 else 1)} {self._words(f'unit.{unit}')}"

    def money(self, dollars: float) -> str:
        """US dollars, also small sums."""
        if 0 < dollars < 0.01:
            return self._words("unit.cents")
        return self._words("unit.money", sum=self._words.number(dollars, 2))

    def value(self, value: Any) -> str:
        """A short form of a searched value."""
        if not isinstance(value, float):
            return str(value)
        return f"{value:.3g}".replace(".", self._words.point)

    @staticmethod
    def columns(rows: Sequence[LeaderboardRow]) -> Mapping[str, str]:
        """Searched keys with the name to show: the last part, unless two keys have the same one."""
        keys = list(dict.fromkeys(key for row in rows for key in row.params))
        short = [key.rpartition(".")[2] for key in keys]
        return {key: name if short.count(name) == 1 else key for key, name in zip(keys, short, strict=True)}

    def link(self, url: str | None) -> str | None:
        """An address that may become a link; None for one that would run code."""
        return url if url and urlsplit(url).scheme in ("http", "https") else None
