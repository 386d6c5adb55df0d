"""Verdicts go to the trials that they can still decide between."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from lorahydra.evaluation.intervals import Floats
from lorahydra.evaluation.racing import Race, race


class Judge:
    """Knows all verdicts, and counts those that it is asked for."""

    def __init__(self, verdicts: Floats, lasts: int = 10**9) -> None:
        self.verdicts, self.lasts = verdicts, lasts
        self.rounds: list[tuple[list[int], int]] = []

    def ask(self, trials: Sequence[int], examples: int) -> Floats | None:
        self.rounds.append((list(trials), examples))
        return None if len(self.rounds) > self.lasts else self.on(trials, examples)

    def on(self, trials: Sequence[int], examples: int) -> Floats:
        rows = np.full((len(trials), self.verdicts.shape[1]), np.nan)
        rows[:, :examples] = self.verdicts[list(trials), :examples]
        return rows

    def race(self, *, judged: int = 5, verdicts: int = 600, indifference: float = 0.005, repeats: int = 1) -> Race:
        count = range(len(self.verdicts))
        scores = np.zeros_like(self.verdicts)
        outcome = race(
            scores,
            self.on(count, judged),
            self.ask,
            judged=judged,
            verdicts=verdicts,
            indifference=indifference,
            repeats=repeats,
            samples=300,
        )
        assert outcome.verdicts <= verdicts
        return outcome


def judge(means: Sequence[float], examples: int = 200, seed: int = 0) -> Judge:
    draws = np.random.default_rng(seed)
    common = draws.normal(0, 0.1, examples)
    return Judge(np.array(means)[:, None] + common + draws.normal(0, 0.1, (len(means), examples)))


def test_trials_that_are_clearly_behind_drop_out_and_one_is_left() -> None:
    server = judge([0.2] * 10 + [0.5, 0.7])
    outcome = server.race(indifference=0)
    assert outcome.last == (11,)
    assert outcome.reason == "one trial is left"
    assert outcome.verdicts < 200, "judging two trials on all examples takes 390"
    sizes = [len(trials) for trials, _ in server.rounds]
    assert sizes == sorted(sizes, reverse=True)
    assert [examples for _, examples in server.rounds] == [10, 20, 40, 80, 160, 200][: len(sizes)]


def test_the_best_of_many_is_found_more_often_than_among_the_first_three() -> None:
    draws = np.random.default_rng(1)
    raced, finalists = [], []
    for seed in range(25):
        means = draws.normal(0.5, 0.04, 20)
        server = judge(list(means), seed=seed)
        outcome = server.race(verdicts=3 * 195)
        raced.append(means.max() - means[outcome.last[0]])
        three = np.argsort(-server.verdicts[:, :5].mean(axis=1))[:3]
        finalists.append(means.max() - means[three[server.verdicts[three].mean(axis=1).argmax()]])
    assert np.mean(raced) < 0.6 * np.mean(finalists)


def test_equal_trials_end_when_no_difference_matters_or_no_verdict_is_left() -> None:
    same = judge([0.5])
    copies = Judge(same.verdicts.repeat(3, axis=0))
    assert copies.race().reason == "no difference that matters is left"
    assert copies.rounds == []

    server = judge([0.5, 0.5, 0.5])
    outcome = server.race(verdicts=100)
    assert outcome.reason == "more verdicts would be needed than may be asked for"
    assert outcome.verdicts > 60
    assert len(outcome.last) >= 2

    outcome = server.race(verdicts=10**6, indifference=0)
    assert outcome.reason == "all examples are judged"
    assert (outcome.examples, outcome.verdicts) == (200, 3 * 195)


def test_few_verdicts_go_to_the_best() -> None:
    server = judge([0.5] * 20, examples=32)
    outcome = server.race(verdicts=3 * 27)
    assert outcome.verdicts > 60
    sizes = [len(trials) for trials, _ in server.rounds]
    assert 3 <= sizes[0] <= 8
    first = server.on(range(20), 5)
    assert set(server.rounds[0][0]) == set(np.argsort(-np.nanmean(first, axis=1))[: sizes[0]])


def test_trials_with_good_scores_go_on_though_their_few_verdicts_were_unlucky() -> None:
    """A noisy judge on five examples would leave out the best trial, which the scores of all examples know."""
    draws = np.random.default_rng(3)
    server = Judge(draws.normal(0.5, 0.1, (20, 64)))
    first = server.on(range(20), 5)
    unlucky = int(np.nanmean(first, axis=1).argmin())
    scores = 0.02 * draws.standard_normal((20, 64))
    scores[unlucky] += 0.05
    outcome = race(scores, first, server.ask, judged=5, verdicts=3 * 59, indifference=0.005, samples=300)
    assert unlucky in server.rounds[0][0]
    means = scores.mean(axis=1) + np.nanmean(outcome.judge, axis=1)
    assert list(outcome.last) == sorted(outcome.last, key=lambda n: -means[n]), "in the end, the mean decides"


def test_trials_without_scores_or_verdicts_take_no_part() -> None:
    server = judge([0.5, 0.5, 0.5])
    scores = np.zeros_like(server.verdicts)
    scores[1, 3] = np.nan
    server.verdicts[2] = np.nan

    def outcome() -> Race:
        first = server.on(range(3), 5)
        return race(scores, first, server.ask, judged=5, verdicts=600, indifference=0.005)

    assert (outcome().last, outcome().reason) == ((0,), "one trial is left")
    server.verdicts[:] = np.nan
    assert (outcome().last, outcome().reason, server.rounds) == ((), "no trial has verdicts", [])


@pytest.mark.parametrize("missing", [1, 3])
def test_a_trial_whose_first_verdicts_are_not_complete_goes_on(missing: int) -> None:
    server = judge([0.5, 0.5, 0.6])
    first = server.on(range(3), 5)
    first[0] += 0.15
    first[2, :missing] = np.nan
    outcome = race(np.zeros_like(first), first, server.ask, judged=5, verdicts=900, indifference=0.005)
    assert sorted(server.rounds[0][0]) == [0, 1, 2]
    assert outcome.last[0] == 2


def test_a_trial_that_gets_no_verdicts_leaves_with_those_that_it_had() -> None:
    server = judge([0.5, 0.5, 0.5])

    def ask(trials: Sequence[int], examples: int) -> Floats:
        rows = server.on(trials, examples)
        rows[[trial == 1 and examples > 10 for trial in trials]] = np.nan
        return rows

    first = server.on(range(3), 5)
    outcome = race(np.zeros_like(first), first, ask, judged=5, verdicts=900, indifference=0)
    assert sorted(outcome.last) == [0, 2]
    assert np.isfinite(outcome.judge).sum(axis=1).tolist() == [200, 10, 200]


def test_nobody_is_cut_for_verdicts_that_do_not_come() -> None:
    server = judge([0.5] * 5)
    server.lasts = 0
    outcome = server.race(verdicts=30, indifference=0)
    assert len(server.rounds[0][0]) < 5
    assert len(outcome.last) == 5


def test_a_judge_that_gives_no_more_verdicts_ends_the_race_with_what_there_is() -> None:
    server = judge([0.5] * 5)
    server.lasts = 2
    outcome = server.race()
    assert outcome.reason == "no more verdicts can be had"
    assert outcome.examples == 20
    assert np.isfinite(outcome.judge[list(outcome.last)]).sum(axis=1).tolist() == [20] * len(outcome.last)


@pytest.mark.parametrize("judged", [2, 20])
def test_repeats_are_asked_for_even_if_all_examples_are_judged_once(judged: int) -> None:
    server = judge([0.5, 0.5], examples=20)
    outcome = server.race(judged=judged, verdicts=10**6, indifference=0, repeats=2)
    assert outcome.examples == 20
    assert outcome.verdicts == 2 * (40 - judged)
