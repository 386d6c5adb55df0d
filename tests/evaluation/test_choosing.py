"""How sure a choice among trials is: checked against simulated trials whose true means are known."""

from __future__ import annotations

import time

import numpy as np
import pytest

from lorahydra.evaluation.choosing import compare
from lorahydra.evaluation.intervals import Floats
from lorahydra.evaluation.posterior import near


def scores_of(draws: np.random.Generator, means: Floats, examples: int, noise: float = 0.15) -> Floats:
    """Scores that share half of their noise, as those of one example do."""
    common = draws.normal(0, noise * np.sqrt(0.5), examples)
    return means[:, None] + common + draws.normal(0, noise * np.sqrt(0.5), (len(means), examples))


def rates(draws: np.random.Generator) -> Floats:
    """True means of trials with 20 random learning rates, of which those far from the best are worse."""
    return -0.04 * (draws.uniform(-2, 2, 20) - draws.normal(0, 0.5)) ** 2 + draws.normal(0, 0.008, 20)


def test_statements_hold_as_often_as_they_claim() -> None:
    draws = np.random.default_rng(1)
    bounded, named, believed, right, far = [], [], [], [], []
    for _ in range(200):
        means = rates(draws)
        sure = compare(scores_of(draws, means, 64), samples=300)
        assert sure is not None
        truth, best = int(means.argmax()), sure.best
        bounded.append(means[truth] - means[best] <= sure.regret_bound)
        named.append(sure.in_set[truth])
        believed.append(sure.p_best[best])
        right.append(best == truth)
        far.append(sure.p_best[~sure.in_set].sum())
        assert sure.p_best.sum() == pytest.approx(1)
    assert 0.93 <= np.mean(bounded) <= 0.985
    assert np.mean(named) >= 0.95
    assert np.mean(believed) == pytest.approx(np.mean(right), abs=0.06)
    assert np.mean(far) < 0.1


@pytest.mark.parametrize(("examples", "most"), [(5, 0.2), (64, 0.25)])
def test_trials_that_are_truly_equal_are_not_told_apart(examples: int, most: float) -> None:
    draws = np.random.default_rng(2)
    sets, beliefs = [], []
    for _ in range(60):
        sure = compare(scores_of(draws, np.zeros(20), examples), samples=300)
        assert sure is not None
        sets.append(sure.in_set.mean())
        beliefs.append(sure.p_best[sure.best])
    assert np.mean(sets) > 0.9
    assert np.mean(beliefs) < most, "the best of twenty equal trials is lucky"


def test_the_luck_of_trials_that_were_judged_more_is_not_believed() -> None:
    """Three finalists are judged on all examples, because they were the best by five."""
    draws, believed, right = np.random.default_rng(8), [], []
    for _ in range(100):
        means = draws.normal(0.5, 0.02, 20)
        judge = scores_of(draws, means, 64, noise=0.2)
        last = np.argsort(-judge[:, :5].mean(axis=1))[:3]
        judge[np.setdiff1d(np.arange(20), last), 5:] = np.nan
        sure = compare(np.zeros_like(judge), judge, samples=300)
        assert sure is not None
        believed.append(sure.p_best[sure.best])
        right.append(sure.best == means.argmax())
    assert np.mean(believed) == pytest.approx(np.mean(right), abs=0.08)


def test_the_bound_allows_for_trials_that_dropped_out_after_a_few_verdicts() -> None:
    """The judge sees differences of 2 points that the metric does not; three finalists are judged on all examples."""
    draws, bounded = np.random.default_rng(9), []
    for _ in range(200):
        metric, opinions = draws.normal(0, 0.004, 20), draws.normal(0, 0.012, 20)
        scores = scores_of(draws, 0.4 * metric, 64, 0.06)
        judge = scores_of(draws, 0.6 * metric + opinions, 64, 0.12)
        last = np.argsort(-(scores.mean(axis=1) + judge[:, :5].mean(axis=1)))[:3]
        judge[np.setdiff1d(np.arange(20), last), 5:] = np.nan
        sure = compare(scores, judge, samples=300)
        assert sure is not None
        means = metric + opinions
        bounded.append(means.max() - means[sure.best] <= sure.regret_bound)
    assert np.mean(bounded) >= 0.86


def test_a_large_study_takes_well_under_a_second_and_the_seed_decides_all() -> None:
    scores = scores_of(np.random.default_rng(3), np.linspace(0, 1, 50), 1000)
    started = time.thread_time()
    one = compare(scores, seed=4)
    assert time.thread_time() - started < 1
    other = compare(scores, seed=4)
    assert one is not None
    assert other is not None
    assert (one.regret_bound, one.p_best.tolist()) == (other.regret_bound, other.p_best.tolist())
    assert one.best == 49


def test_a_clear_winner_is_alone_and_copies_share() -> None:
    scores = scores_of(np.random.default_rng(5), np.array([0.9, 0.1, 0.1]), 50)
    alone = compare(scores)
    assert alone is not None
    assert (alone.best, alone.in_set.tolist(), alone.regret_bound) == (0, [True, False, False], 0)
    assert alone.p_best[0] == pytest.approx(1)
    twins = compare(scores[[0, 0, 1]])
    assert twins is not None
    assert twins.in_set.tolist() == [True, True, False]
    assert twins.p_best.tolist() == pytest.approx([0.5, 0.5, 0], abs=0.02)
    single = compare(scores[:1])
    assert single is not None
    assert (single.p_best.tolist(), single.regret_bound) == ([1.0], 0)


def test_trials_with_the_same_answers_are_equally_likely_to_be_the_best() -> None:
    sure = compare(np.tile(np.random.default_rng(1).random(20), (8, 1)))
    assert sure is not None
    assert sure.p_best.min() > 0.09
    assert sure.in_set.all()


def test_verdicts_count_on_the_examples_that_are_shared_with_the_best() -> None:
    draws = np.random.default_rng(6)
    judge = scores_of(draws, np.array([0.5, 0.49, 0.1]), 40)
    judge[1, 20:] = judge[2, 10:] = np.nan  # fewer rounds
    judge[0, 3] = np.nan  # no verdict
    scores = np.zeros_like(judge)
    sure = compare(scores, judge)
    assert sure is not None
    assert sure.best == 0
    shared = np.isfinite(judge[0]) & np.isfinite(judge[1])
    assert sure.differences[1] == pytest.approx((judge[1] - judge[0])[shared].mean())
    assert sure.in_set.tolist() == [True, True, False]
    assert compare(scores, judge, best=1).differences[1] == 0  # type: ignore[union-attr]

    judge[1, 4:] = np.nan
    fewer = compare(scores, judge)
    assert fewer is not None
    assert np.isnan(fewer.differences[1])
    assert (fewer.p_best[1], fewer.in_set[1]) == (0, False), "three shared verdicts are too few"


@pytest.mark.parametrize("on", [5, 40, 64])
def test_trials_that_dropped_out_do_not_come_back_when_the_best_one_is_judged_on_everything(on: int) -> None:
    draws, back = np.random.default_rng(0), 0
    for _ in range(20):
        judge = 0.6 * scores_of(draws, np.array([0.8, *[0.55] * 5]), 64, noise=0.07)
        judge[1:, 5:] = judge[0, on:] = np.nan
        sure = compare(0.4 * scores_of(draws, np.full(6, 0.85), 64, noise=0.01), judge, best=0, samples=500)
        assert sure is not None
        back += int(sure.in_set[1:].sum())
    assert back < 20, "of 100"


def test_a_verdict_that_is_missing_by_chance_decides_nothing() -> None:
    draws = np.random.default_rng(8)
    judge = scores_of(draws, np.array([0.8, 0.6]), 64)
    judge[0, 7] = np.nan
    sure = compare(np.zeros_like(judge), judge)
    assert sure is not None
    assert (sure.best, sure.p_best[0]) == (0, pytest.approx(1, abs=0.01))
    # Of the first five of each trial.
    judge = scores_of(draws, np.array([0.6, 0.6, 0.1]), 64, noise=0.05)
    judge[:, 5:] = judge[1, 2] = judge[2, 4] = np.nan
    sure = compare(np.zeros_like(judge), judge, best=0)
    assert sure is not None
    assert sure.examples.tolist() == [5, 4, 4]
    assert sure.in_set.tolist() == [True, True, False]
    assert np.isfinite(sure.regret_bounds).all()


def test_an_equal_difference_on_a_few_examples_is_no_proof() -> None:
    judge = 0.5 + scores_of(np.random.default_rng(9), np.zeros(6), 5)
    judge[1] = judge[0] - 0.01
    sure = compare(np.zeros_like(judge), judge, best=0)
    assert sure is not None
    assert sure.in_set[1]
    assert sure.p_best[1] > 0.02


def test_few_noisy_verdicts_count_little_beside_scores_that_every_example_has() -> None:
    draws = np.random.default_rng(11)
    means = np.array([0.02, 0.0, 0.0, 0.0, 0.0, 0.0])
    scores = scores_of(draws, means, 200, noise=0.05)
    verdicts = scores_of(draws, np.zeros(6), 200, noise=0.3)
    verdicts[:, 5:] = np.nan
    verdicts[:, :5] += 0.02 * np.arange(6)[:, None] - np.nanmean(verdicts, axis=1)[:, None]
    sure = compare(scores, verdicts)
    assert sure is not None
    assert sure.best == 5, "which has the highest mean"
    assert sure.expected.argmax() == sure.p_best.argmax() == 0

    verdicts = scores_of(draws, 0.1 * np.arange(6), 200, noise=0.3)
    many = compare(scores, verdicts)
    assert many is not None
    assert many.expected.argmax() == many.p_best.argmax() == 5, "all verdicts say so"


def test_noise_of_a_few_verdicts_brings_no_trial_near_that_is_far_behind_by_its_scores() -> None:
    means, found = np.repeat([0.0, -0.2], 6), []
    for seed in range(40):
        draws = np.random.default_rng(seed)
        scores = 0.4 * scores_of(draws, means, 64)
        verdicts = 1.5 * scores + 0.6 * draws.normal(0, 0.25, scores.shape)
        verdicts[2:, 5:] = np.nan
        found.append(near(scores, verdicts, 0, draws))
    equal, behind = np.split(np.mean(found, axis=0), 2)
    assert equal.min() > 0.95
    assert behind.mean() < 0.1


def test_verdicts_follow_the_scores_on_the_examples_that_were_not_judged() -> None:
    """Of trials that are equal in truth, one was lucky on the judged examples, as its scores on the others show."""
    draws = np.random.default_rng(12)
    scores = scores_of(draws, np.zeros(8), 400, noise=0.2)
    scores[0, :40] += 0.1 - scores[0, :40].mean()
    scores[0, 40:] -= scores[0].sum() / 360
    verdicts = 2 * scores + 0.01 * draws.standard_normal(scores.shape)
    verdicts[:, 40:] = np.nan
    sure = compare(scores, verdicts)
    assert sure is not None
    assert sure.best == 0
    assert sure.differences[1:].max() < -0.1
    assert np.abs(sure.expected).max() < 0.03


@pytest.mark.parametrize("place", [0, 2])
def test_a_trial_that_lacks_a_score_is_not_compared(place: int) -> None:
    scores = scores_of(np.random.default_rng(10), np.array([0.9, 0.5, 0.9]), 30)
    scores[place, 7] = np.nan
    sure = compare(scores)
    assert sure is not None
    assert sure.best == 2 - place
    assert np.isnan([sure.differences[place], sure.expected[place], sure.regret_bounds[place]]).all()
    assert (sure.p_best[place], sure.in_set[place], sure.examples[place]) == (0, False, 0)
    assert compare(scores, best=place) is None
    assert compare(np.full((2, 9), np.nan)) is None
    assert compare(np.empty((0, 9))) is None


def test_too_few_examples_say_nothing() -> None:
    scores = np.random.default_rng(7).random((3, 30))
    judge = np.full_like(scores, np.nan)
    judge[:, :4] = 0.5
    assert compare(scores[:, :4]) is None
    assert compare(scores, judge) is None
    judge[:, 4] = 0.6
    assert compare(scores, judge) is not None
