"""The judge's score without what goes with length."""

from __future__ import annotations

import numpy as np
import pytest

from lorahydra.evaluation.length_control import length_controlled


def test_a_judge_that_only_likes_length_gives_both_models_the_same() -> None:
    draws = np.random.default_rng(0)
    references = [100] * 400
    longer, shorter = draws.normal(160, 40, 400), draws.normal(100, 40, 400)
    spread = np.concatenate([longer - 100, shorter - 100]).std()
    long, short = (50 + 20 * np.tanh((side - 100) / spread) for side in (longer, shorter))
    found = length_controlled([list(long), list(short)], [list(longer), list(shorter)], references)
    assert long.mean() - short.mean() > 8
    assert found == pytest.approx([50, 50], abs=1)


def test_quality_that_has_nothing_to_do_with_length_stays() -> None:
    draws = np.random.default_rng(1)
    scores, lengths = draws.normal(60, 5, 300), draws.integers(50, 150, 300)
    found = length_controlled([list(scores)], [list(lengths)], [100] * 300)
    assert found == pytest.approx([scores.mean()], abs=0.2)


def test_few_verdicts_change_little_and_too_few_nothing() -> None:
    few = length_controlled([[0, 25, 50, 75, 100, None]], [[80, 90, 100, 110, 130, 9]], [100] * 6)
    assert few is not None
    assert abs(few[0] - 50) < 1
    assert length_controlled([[1, 2, 3, 4, None]], [[1, 2, 3, 4, 5]], [1] * 5) is None
    assert length_controlled([[1, 2, 3, 4, 5]], [[7] * 5], [7] * 5) == [3]


def test_a_score_stays_on_its_scale() -> None:
    found = length_controlled([[100.0] * 28 + [0.0] * 2], [[90] * 28 + [10] * 2], [100] * 30)
    assert found == [100.0]
