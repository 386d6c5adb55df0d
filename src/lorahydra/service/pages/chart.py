"""The chart of scores by trial: positions of the marks, which the template draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lorahydra.service.views import LeaderboardRow

__all__ = ["Chart", "Mark", "chart", "leader"]

WIDTH, HEIGHT = 720, 300
LEFT, RIGHT, TOP, BOTTOM = 80, 16, 16, 56
"""Margins for the labels of the axes."""
MOST_TICKS = 5
STEPS = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True)
class Mark:
    """One trial."""

    row: LeaderboardRow
    x: float
    y: float
    low: float | None
    """Ends of the whisker; None if there is no interval."""
    high: float | None
    is_best: bool


@dataclass(frozen=True)
class Chart:
    """Marks, in the coordinates of an image of `WIDTH` by `HEIGHT`."""

    marks: list[Mark]
    """Trials that have a score."""
    ended: list[Mark]
    """Trials that have none: pruned or failed."""
    best_line: str
    """SVG path of the best score so far."""
    scores: list[tuple[float, float]]
    """Places and values of the labels of an axis."""
    trials: list[tuple[float, float]]
    base: float | None = None
    """Height of the line of the base model's score."""
    width: float = WIDTH
    height: float = HEIGHT
    left: float = LEFT
    right: float = WIDTH - RIGHT
    bottom: float = HEIGHT - BOTTOM


def leader(rows: Sequence[LeaderboardRow]) -> LeaderboardRow | None:
    """The winner; before it is named, the best trial so far."""
    first = next((row for row in rows if row.rank == 1), None)
    return next((row for row in rows if row.is_winner), first)


def chart(rows: Sequence[LeaderboardRow], wanted: int, base: float | None = None) -> Chart | None:
    """The chart of a leaderboard, whose axis has room for all `wanted` trials from the start; None before a score.

    `base` is the score of the base model.
    """
    scored = sorted((row for row in rows if row.combined is not None), key=lambda row: row.trial)
    if not scored:
        return None
    best = leader(rows)
    last = max(wanted, *(row.trial for row in rows), 2)
    ends = [v for row in scored for v in (row.combined, row.combined_low, row.combined_high) if v is not None]
    ends += [] if base is None else [base]
    grid = ticks(min(ends), max(ends))
    low, high = grid[0], grid[-1]

    def x(number: float) -> float:
        return round(LEFT + 10 + (WIDTH - RIGHT - LEFT - 20) * (number - 1) / (last - 1), 1)

    def y(value: float) -> float:
        return round(TOP + (HEIGHT - BOTTOM - TOP) * (high - value) / (high - low), 1)

    def mark(row: LeaderboardRow) -> Mark:
        return Mark(
            row=row,
            x=x(row.trial),
            y=HEIGHT - BOTTOM if row.combined is None else y(row.combined),
            low=None if row.combined_low is None else y(row.combined_low),
            high=None if row.combined_high is None else y(row.combined_high),
            is_best=row is best,
        )

    numbers = sorted({max(1, round(n)) for n in ticks(1, last) if n <= last})
    return Chart(
        marks=[mark(row) for row in scored],
        ended=[mark(row) for row in rows if row.combined is None and row.state in ("pruned", "failed")],
        best_line=_best_line([(mark(row).x, mark(row).y) for row in scored], x(last)),
        scores=[(y(value), value) for value in grid],
        trials=[(x(number), number) for number in numbers],
        base=None if base is None else y(base),
    )


def ticks(low: float, high: float) -> list[float]:
    """Round values, evenly spaced, at most `MOST_TICKS` + 1 of them, from below `low` to above `high`."""
    span = max(high - low, 1e-3)
    rough = span / (MOST_TICKS - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in STEPS if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * i, 10) for i in range(first, max(last, first + 1) + 1)]


def _best_line(points: Sequence[tuple[float, float]], end: float) -> str:
    """A staircase that rises where a trial is better than all before; a smaller y is higher."""
    best = points[0][1]
    path = [f"M{points[0][0]} {best}"]
    for place, height in points[1:]:
        path.append(f"H{place}")
        if height < best:
            best = height
            path.append(f"V{best}")
    return " ".join([*path, f"H{min(end, points[-1][0])}"])
