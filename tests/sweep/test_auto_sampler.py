"""The default sampler: spreads the first trials, uses the order of numbers, and repeats nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from lorahydra.sweep.auto_sampler import AutoSampler, comparable
from lorahydra.sweep.compat import suggest
from lorahydra.sweep.running_trial import RunningTrial
from lorahydra.sweep.trial_queue import TrialQueue
from lorahydra.sweep.trial_record import ATTRIBUTE, counted, trial_records

Space = Mapping[str, BaseDistribution]
Params = Mapping[str, Any]

RATE = FloatDistribution(2e-5, 2e-3, log=True)
RANK = CategoricalDistribution([8, 16, 32, 64])
RATE_AND_RANK: Space = {"rate": RATE, "rank": RANK}


def new_study(space: Space, seed: int = 0, **arguments: Any) -> optuna.Study:
    sampler = AutoSampler(seed, **arguments)
    sampler.fit(space)
    return optuna.create_study(direction="maximize", sampler=sampler)


def searched(study: optuna.Study, space: Space, count: int, score: Callable[[Params], float]) -> list[Params]:
    """The parameters of the next trials."""
    drawn: list[Params] = []
    for _ in range(count):
        trial = study.ask(dict(space))
        drawn.append(dict(trial.params))
        study.tell(trial, score(trial.params))
    return drawn


def quality(params: Params, best: float = math.log10(4e-4)) -> float:
    """A smooth surface, which falls off where the rate is too high."""
    distance = math.log10(params["rate"]) - best
    return 0.7 - 0.15 * distance**2 + 0.002 * math.log2(params["rank"]) - max(0.0, distance - 0.5)


def test_a_good_setting_is_found_in_few_trials() -> None:
    best, found = quality({"rate": 4e-4, "rank": 64}), []
    for seed in range(20):
        noise = np.random.default_rng(seed)
        study = new_study(RATE_AND_RANK, seed)
        drawn = searched(study, RATE_AND_RANK, 12, lambda params, noise=noise: quality(params) + noise.normal(0, 0.003))  # type: ignore[misc]
        found.append(next((n for n, params in enumerate(drawn, 1) if quality(params) > best - 0.005), math.inf))
    assert max(found) <= 12
    assert sum(number <= 8 for number in found) >= 18


def test_the_search_does_not_go_back_below_a_cliff() -> None:
    """The scores of SmolLM2 on the demo data by rate: below 2e-4 it learns hardly anything, above it is a plateau."""
    rates = np.log([2e-5, 9.3e-5, 1.55e-4, 2.58e-4, 4.31e-4, 7.19e-4, 1.2e-3, 2e-3])
    scores = [0.291, 0.386, 0.418, 0.694, 0.722, 0.728, 0.735, 0.733]
    low = []
    for seed in range(10):
        noise = np.random.default_rng(seed)
        study = new_study(RATE_AND_RANK, seed)
        drawn = searched(
            study,
            RATE_AND_RANK,
            16,
            lambda params, noise=noise: np.interp(math.log(params["rate"]), rates, scores) + noise.normal(0, 0.008),  # type: ignore[misc]
        )
        low += [params["rate"] < 2e-4 for params in drawn[6:]]
    assert np.mean(low) < 0.1


def test_the_first_trials_are_spread_over_each_range() -> None:
    study = new_study(RATE_AND_RANK, n_startup_trials=8)
    drawn = searched(study, RATE_AND_RANK, 8, quality)
    places = sorted(int(8 * math.log(params["rate"] / 2e-5) / math.log(100)) for params in drawn)
    assert places == list(range(8))
    assert sorted(params["rank"] for params in drawn) == [8, 8, 16, 16, 32, 32, 64, 64]
    assert {type(params["rate"]) for params in drawn} == {float}


def test_draws_depend_on_the_seed_and_on_trials_that_count() -> None:
    one, other = new_study(RATE_AND_RANK), new_study(RATE_AND_RANK)
    searched(one, RATE_AND_RANK, 5, quality)
    interrupted = other.ask(dict(RATE_AND_RANK))
    interrupted.set_user_attr(ATTRIBUTE, {"interrupted": True})
    other.tell(interrupted, state=TrialState.FAIL)
    searched(other, RATE_AND_RANK, 5, quality)
    assert one.ask(dict(RATE_AND_RANK)).params == other.ask(dict(RATE_AND_RANK)).params
    assert one.ask(dict(RATE_AND_RANK)).params != new_study(RATE_AND_RANK, seed=1).ask(dict(RATE_AND_RANK)).params


@pytest.mark.parametrize(
    "space",
    [
        {"rank": RANK, "dropout": CategoricalDistribution([0.0, 0.1, 0.2])},
        {"rank": RANK, "scheduler": CategoricalDistribution(["linear", "cosine", "constant"])},
        {"rank": RANK, "steps": IntDistribution(2, 6, step=2)},
        {"rank": RANK, "dropout": FloatDistribution(0.1, 0.3, step=0.1)},
    ],
    ids=["numbers", "words", "integers", "steps"],
)
def test_no_setting_is_tried_twice(space: Space) -> None:
    drawn = searched(new_study(space), space, 12, lambda params: float(params["rank"]))
    assert len({str(params) for params in drawn}) == 12


@pytest.mark.parametrize("other", [RANK, CategoricalDistribution(["linear", "cosine"])], ids=["model", "tpe"])
def test_sums_of_steps_are_not_taken_for_other_settings(other: BaseDistribution) -> None:
    """0.1 + 0.2 is not 0.3 in floats."""
    space = {"dropout": FloatDistribution(0.0, 0.9, step=0.1), "other": other}
    study = new_study(space)
    for value in (0.3, 0.6, 0.7):
        study.enqueue_trial({"dropout": value, "other": other.choices[0]})  # type: ignore[attr-defined]
    drawn = searched(study, space, 20, lambda params: -((params["dropout"] - 0.62) ** 2))
    assert len({(round(params["dropout"], 6), params["other"]) for params in drawn}) == 20
    assert {params["dropout"] for params in drawn} <= {n / 10 for n in range(10)}


def test_a_range_of_very_many_integers() -> None:
    space = {"rank": IntDistribution(0, 2**40)}
    assert len(searched(new_study(space), space, 6, lambda params: float(params["rank"]))) == 6


def test_trials_that_run_at_once_differ() -> None:
    study = new_study(RATE_AND_RANK)
    searched(study, RATE_AND_RANK, 6, quality)
    rates = sorted(math.log10(study.ask(dict(RATE_AND_RANK)).params["rate"]) for _ in range(4))
    assert min(np.diff(rates)) > 0.005


def test_the_neighbourhood_of_failures_is_left() -> None:
    study = new_study({"rate": RATE})
    for _ in range(12):
        trial = study.ask({"rate": RATE})
        if trial.params["rate"] > 3e-4:
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, trial.params["rate"])  # the best is beside the failures
    failed = [trial.state is TrialState.FAIL for trial in study.trials]
    assert sum(failed[6:]) <= 2
    assert study.best_value > 2e-4


def test_the_neighbourhood_of_trials_that_cannot_win_is_left() -> None:
    study = new_study({"rate": RATE})
    excluded = []
    for _ in range(12):
        trial = study.ask({"rate": RATE})
        if trial.params["rate"] > 3e-4:
            excluded.append(trial.number)
            trial.set_user_attr(ATTRIBUTE, {"excluded": "forgets too much"})
        study.tell(trial, trial.params["rate"])  # the best ones are excluded
    assert sum(number >= 6 for number in excluded) <= 2
    assert max(value for t in study.trials if t.number not in excluded and (value := t.value)) > 2e-4


def test_the_neighbourhood_of_trials_that_were_ended_early_is_left() -> None:
    # The first trials of a real study: rate, rank, first loss, and the score of those that were not pruned.
    trials = [
        (1e-4, 16, 3.4, 0.3687),
        (1.81e-3, 8, 1.7, 0.7176),
        (4.69e-4, 64, 2.3, 0.7248),
        (2.92e-5, 16, 3.66, 0.2924),
        (2e-3, 64, 1.65, 0.7197),
        (2e-5, 64, 3.69, None),
        (2.16e-4, 64, 2.95, None),
    ]
    study = new_study(RATE_AND_RANK)
    for rate, rank, loss, score in trials:
        study.add_trial(
            create_trial(
                state=TrialState.PRUNED if score is None else TrialState.COMPLETE,
                value=score,
                params={"rate": rate, "rank": rank},
                distributions=dict(RATE_AND_RANK),
                intermediate_values={1: -loss},
            )
        )
    assert study.ask(dict(RATE_AND_RANK)).params["rate"] > 3e-4


def test_a_failed_trial_whose_answers_were_judged_again_is_not_a_bad_one() -> None:
    space = {"rate": RATE}
    study = new_study(space)
    queue = TrialQueue(study, 10)

    def draw(trial: optuna.Trial) -> list[str]:
        suggest(trial, "rate", RATE)
        return []

    for score in (0.5, None):
        [running], _ = queue.claim(1, draw)
        running.note(run_id=f"run {running.number}")
        if score is None:
            running.failed("JudgeCoverageError: too few verdicts")
        else:
            running.complete([score])
    again = queue.take_again("run 1")
    assert again is not None
    again.complete([0.9])
    known = counted(study.get_trials(deepcopy=False))
    assert [seen.value for seen in comparable(study, known, space, space)] == [0.5, 0.9]
    [drawn], _ = queue.claim(1, draw)
    plain = new_study(space)
    assert searched(plain, space, 3, lambda params: 0.0)[2] == drawn.params, "the third of the first trials"


def test_nothing_is_known_of_a_trial_that_was_ended_by_losses_that_do_not_compare() -> None:
    space = {"training.dpo_beta": FloatDistribution(0.01, 0.5)}
    study = optuna.create_study(direction="maximize")
    for beta, loss, score in ((0.1, 0.2, 0.5), (0.2, 0.1, 0.6), (0.01, 0.6, None)):
        study.add_trial(
            create_trial(
                state=TrialState.PRUNED if score is None else TrialState.COMPLETE,
                value=score,
                params={"training.dpo_beta": beta},
                distributions=dict(space),
                intermediate_values={1: -loss},
            )
        )
    seen = comparable(study, study.get_trials(deepcopy=False), space, space)
    assert [trial.state for trial in seen] == [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.RUNNING]


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_losses_below_zero_are_compared_as_they_are(direction: str) -> None:
    """A function of the user's may report the logarithm of a density."""
    space = {"x": FloatDistribution(0, 1)}
    study, sign = optuna.create_study(direction=direction), 1 if direction == "minimize" else -1
    for loss, ends_early in ((-0.9, False), (-0.5, False), (-0.6, True)):
        running = RunningTrial(study, study.ask(space))
        running.in_race = True
        if ends_early:
            running.end_early("behind", loss)
        else:
            running.measured(loss)
            running.complete([sign * loss])
    seen = comparable(study, study.get_trials(deepcopy=False), space, space)
    assert seen[2].value == sign * -0.5
    assert [record.loss for record in trial_records(study)] == [-0.9, -0.5, -0.6]


def test_one_extreme_value_does_not_hide_the_others() -> None:
    space: Space = {"x": FloatDistribution(0, 1), "y": FloatDistribution(0, 1)}
    study = new_study(space)

    def score(params: Params) -> float:
        distance = math.dist((params["x"], params["y"]), (0.3, 0.6))
        return -1000.0 if len(study.trials) == 3 else -(distance**2)

    searched(study, space, 14, score)
    assert study.best_value > -0.02


def test_several_objectives() -> None:
    sampler = AutoSampler(0)
    sampler.fit(RATE_AND_RANK)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    for _ in range(7):
        trial = study.ask(dict(RATE_AND_RANK))
        study.tell(trial, [quality(trial.params), trial.params["rank"]])
    assert len({trial.params["rate"] for trial in study.trials}) == 7


def test_infinite_values_and_parameters_outside_of_the_space_do_no_harm() -> None:
    study = new_study(RATE_AND_RANK)
    kinds: Space
    for params in ({"rate": 1e-7, "rank": 8}, {"rate": 1e-4, "rank": 7}, {"rate": 1e-4, "rank": 8}):
        kinds = {"rate": FloatDistribution(1e-7, 1, log=True), "rank": CategoricalDistribution([7, 8])}
        value = math.inf if params["rank"] == 8 else 0.5
        study.add_trial(create_trial(params=params, distributions=kinds, value=value))
    assert len(searched(study, RATE_AND_RANK, 6, quality)) == 6
