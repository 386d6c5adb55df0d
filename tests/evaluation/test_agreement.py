"""Rank statistics against scipy's, Krippendorff's alpha against its author's example, and the weight that fits best."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from lorahydra.evaluation.agreement import agreement, krippendorff_alpha, pair_sums, resamples, spearman
from lorahydra.evaluation.weighting import suggest_weight

_ = None
# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), section C: four observers, twelve units.
OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, _, _, _],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, _, 3],
    [_, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, _],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, _],
]


def scored(count: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """People's scores from 1 to 4, and a judge's from 0 to 100."""
    draws = np.random.default_rng(seed)
    quality = draws.normal(size=count)
    people = 1.0 + np.digitize(quality, [-1, 0, 1])
    return people, np.round(np.clip(50 + 20 * (quality + noise * draws.normal(size=count)), 0, 100))


def test_the_statistics_are_those_of_scipy() -> None:
    people, judge = scored(40, 0.5)
    found = agreement(people, judge, seed=1, samples=200)
    assert found.spearman.value == pytest.approx(stats.spearmanr(people, judge).statistic)
    assert found.kendall.value == pytest.approx(stats.kendalltau(people, judge).statistic)
    assert found.count == 40
    for one in (found.spearman, found.kendall, found.pairwise):
        assert one.low < one.value < one.high


def test_a_resample_counts_an_example_as_often_as_it_is_drawn() -> None:
    people, judge = scored(12, 0.5)
    counts = resamples(12, 5, seed=3)
    drawn = np.repeat(np.arange(12), counts[2].astype(int))
    order = np.sign(people[:, None] - people) * np.sign(judge[:, None] - judge)
    again = np.sign(people[drawn][:, None] - people[drawn]) * np.sign(judge[drawn][:, None] - judge[drawn])
    assert pair_sums(order, counts)[2] == again.sum()


@pytest.mark.parametrize(
    ("judge", "pairwise"),
    [([1, 2, 3, 4], 1.0), ([4, 3, 2, 1], 0.0), ([2, 2, 2, 2], 0.5), ([1, 2, 2, 3], 11 / 12)],
)
def test_pairwise_agreement_counts_ties_as_half(judge: list[float], pairwise: float) -> None:
    found = agreement([1, 2, 3, 4], judge, seed=0, samples=100)
    assert found.pairwise.value == pytest.approx(pairwise)


def test_equal_scores_have_no_correlation() -> None:
    found = agreement([1, 2, 3, 4], [5, 5, 5, 5], seed=0, samples=100)
    assert math.isnan(found.kendall.value)
    assert math.isnan(spearman([1, 2, 3], [1, 1, 1], seed=0, samples=100).low)


def test_alpha_is_that_of_the_published_example() -> None:
    assert krippendorff_alpha(OBSERVERS) == pytest.approx(0.849, abs=5e-4)


@pytest.mark.parametrize(
    ("scores", "alpha"),
    [
        ([[1, 2, 3], [1, 2, 3]], 1.0),
        ([[0, 0], [2, 2]], -0.5),
        ([[1, 1], [1, 1]], math.nan),
        ([[1, None], [None, 2]], math.nan),
    ],
)
def test_alpha_at_its_ends(scores: list[list[float | None]], alpha: float) -> None:
    assert krippendorff_alpha(scores) == pytest.approx(alpha, nan_ok=True)


def test_another_weight_is_suggested_only_where_the_labels_show_it() -> None:
    people, judge = scored(40, 0.3)
    noise = np.random.default_rng(5)
    useless = np.round(100 * noise.random(40))
    like_people = 0.9 + 0.02 * people + 0.001 * noise.random(40)
    clear = suggest_weight(people, useless, like_people, present=0.6, seed=0, samples=200)
    assert clear.is_clear
    assert clear.weight < 0.3
    same = suggest_weight(people, judge, judge / 100, present=0.6, seed=0, samples=200)
    assert not same.is_clear
    assert same.weight == same.present == 0.6
    assert same.gain.value == pytest.approx(0)
