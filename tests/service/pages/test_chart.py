"""Where the marks of the chart stand."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from tests.service.pages.rows import row

from lorahydra.service.pages.chart import chart, ticks


def test_the_chart() -> None:
    assert chart([], 5) is None
    assert chart([row(0, None)], 5) is None
    rows = [row(2, 0.7, 1), row(0, 0.5, 2), row(3, 0.6, 3), row(1, None)]
    drawn = chart(rows, 20)
    assert drawn is not None
    assert [mark.row.number for mark in drawn.marks] == [0, 2, 3]
    assert [mark.row.number for mark in drawn.ended] == [1]
    assert [mark.is_best for mark in drawn.marks] == [False, True, False]
    heights = [mark.y for mark in drawn.marks]
    assert heights[1] < heights[2] < heights[0]
    assert all(drawn.left <= mark.x <= drawn.right for mark in drawn.marks)
    assert drawn.best_line.count("V") == 1
    rows[2] = replace(rows[2], is_winner=True)  # the winner, not the trial with the highest score
    drawn = chart(rows, 20)
    assert drawn is not None
    assert [mark.is_best for mark in drawn.marks] == [False, False, True]
    with_base = chart(rows, 20, 0.2)
    assert with_base is not None
    assert with_base.base is not None
    assert max(mark.y for mark in with_base.marks) < with_base.base <= with_base.bottom
    one = chart([row(0, 0.5, 1, combined_low=None, combined_high=None)], 5)
    assert one is not None
    assert one.marks[0].low is None


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.5, 0.5), (0.61, 0.74), (0.8234, 0.8241), (0, 99), (-3.2, 4)])
def test_ticks_are_few_and_hold_the_values(low: float, high: float) -> None:
    values = ticks(low, high)
    assert 2 <= len(values) <= 7
    assert values[0] <= low
    assert values[-1] >= high
    steps = {round(b - a, 9) for a, b in pairwise(values)}
    assert len(steps) == 1
