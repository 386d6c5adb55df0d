"""When a study ends before its last trial, and when it goes on."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import Trial, TrialState, create_trial

from lorahydra.config.compose import compose
from lorahydra.errors import ConfigError
from lorahydra.sweep.stopping import StopRule, ended_early, gain_of_next_trial, go_on
from lorahydra.sweep.trial_queue import TrialQueue

RATE = FloatDistribution(1e-5, 1e-3, log=True)
RULE = StopRule(0.005)


def draw(trial: Trial) -> list[str]:
    trial.suggest_float("rate", RATE.low, RATE.high, log=True)
    return []


def score(share: float) -> float:
    return 0.7 - 0.2 * (share - 0.4) ** 2


def add(study: optuna.Study, *shares: float, score: Callable[[float], float] = score) -> None:
    """Complete trials at these shares of the range."""
    for share in shares:
        params = {"rate": RATE.low * (RATE.high / RATE.low) ** share}
        study.add_trial(create_trial(value=score(share), params=params, distributions={"rate": RATE}))


@pytest.fixture
def study() -> optuna.Study:
    return optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=1))


def evenly(count: int) -> list[float]:
    return [n / (count - 1) for n in range(count)]


def test_a_study_ends_when_another_trial_gains_nothing_that_matters(
    study: optuna.Study, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    first, second = (TrialQueue(study, 20, stop_rule=RULE) for _ in range(2))
    add(study, *evenly(7))
    [running], _ = first.claim(1, draw)  # a running trial is no evidence
    assert len(second.claim(1, draw)[0]) == 1
    running.complete([score(0.5)])
    assert first.claim(3, draw) == ([], [])
    assert not second.has_room(), "all processes know it"
    told = ended_early(study.user_attrs)
    assert told is not None
    assert told.startswith("after 8 of 20 trials: another trial is expected to gain 0.00")
    assert f"The study ends {told}" in caplog.text
    assert TrialQueue(study, 20, stop_rule=RULE).claim(1, draw) == ([], []), "a process that resumes the study as well"


def test_more_trials_or_no_rule_let_it_go_on(study: optuna.Study) -> None:
    add(study, *evenly(8))
    assert RULE.ends(study, 20)
    go_on(study, 20, RULE)
    assert ended_early(study.user_attrs) is not None
    go_on(study, 21, RULE)
    assert ended_early(study.user_attrs) is None
    add(study, *evenly(7))
    assert not RULE.ends(study, 21), "eight more trials, because somebody wanted more"
    add(study, 0.4)
    assert RULE.ends(study, 21)
    go_on(study, 21, None)
    assert TrialQueue(study, 21).has_room()


def test_a_study_does_not_end_while_much_may_be_gained(study: optuna.Study) -> None:
    add(study, *(share / 3 for share in evenly(10)))  # the scores still rise
    assert not RULE.ends(study, 20)
    assert not StopRule(0.0).ends(study, 20)


def test_failed_and_pruned_trials_are_known_to_be_no_better(study: optuna.Study) -> None:
    add(study, *(share / 2 for share in evenly(8)))
    unknown = gain_of_next_trial(study, 0)
    for share in (0.6, 0.7, 0.8, 0.9, 1.0):
        params = {"rate": RATE.low * (RATE.high / RATE.low) ** share}
        study.add_trial(create_trial(state=TrialState.FAIL, params=params, distributions={"rate": RATE}))
    known = gain_of_next_trial(study, 0)
    assert unknown is not None
    assert known is not None
    assert known[0] < unknown[0]


def test_nothing_is_expected_of_a_study_that_cannot_be_modelled(study: optuna.Study) -> None:
    assert gain_of_next_trial(study, 0) is None
    study.add_trial(create_trial(state=TrialState.FAIL, params={"rate": 1e-4}, distributions={"rate": RATE}))
    assert gain_of_next_trial(study, 0) is None, "no trial has a result"
    for n in range(9):  # a custom search space: no parameter has the same range in two trials
        kind = FloatDistribution(0, 1 + n)
        study.add_trial(create_trial(value=1.0, params={"x": 0.5}, distributions={"x": kind}))
    assert gain_of_next_trial(study, 0) is None
    assert not RULE.ends(study, 20)


def test_equal_scores_do_not_say_that_nothing_can_be_gained(study: optuna.Study) -> None:
    """As where the rates are too low to learn anything, and the score is an exact match."""
    add(study, *(share / 3 for share in evenly(9)), score=lambda share: 0.1 + 1e-6 * share)
    assert not RULE.ends(study, 20)


def test_a_study_in_which_some_trials_search_more_than_others_goes_on(
    study: optuna.Study, caplog: pytest.LogCaptureFixture
) -> None:
    """The model would see the choice alone, and not the rates that belong to it."""
    choice = CategoricalDistribution(["adamw", "lion"])
    for n in range(20):
        chosen = choice.choices[n % 2]
        kinds: dict[str, BaseDistribution] = {"optim": choice, f"rate of {chosen}": RATE}
        params = {"optim": chosen, f"rate of {chosen}": 1e-4}
        study.add_trial(create_trial(value=0.6 - 0.1 * (n % 2), params=params, distributions=kinds))
    assert gain_of_next_trial(study, 0) is None
    assert not RULE.ends(study, 30)
    assert not RULE.ends(study, 30)
    said = "search.stop_when_sure is not used: not all trials search rate of adamw, rate of lion"
    assert caplog.messages.count(said) == 1


def test_a_trial_that_failed_before_it_had_its_parameters_does_not_keep_a_study_from_its_end(
    study: optuna.Study,
) -> None:
    add(study, *evenly(8))
    study.add_trial(
        create_trial(state=TrialState.FAIL, params={"x": 1.0}, distributions={"x": FloatDistribution(0, 1)})
    )
    assert RULE.ends(study, 20)


def test_infinite_scores_are_bad_ones(study: optuna.Study) -> None:
    add(study, *evenly(9))
    add(study, 0.99, score=lambda share: -math.inf)
    gain = gain_of_next_trial(study, 0)
    assert gain is not None
    assert math.isfinite(gain[0])


@pytest.mark.parametrize("objective", ["loss", "time", "[combined,adapter_size]"])
def test_objectives_without_a_difference_that_does_not_matter_are_refused(objective: str) -> None:
    with pytest.raises(ConfigError, match=r"search\.stop_when_sure=true needs one objective of combined"):
        compose(["search.stop_when_sure=true", f"objective={objective}"])
    compose(["search.stop_when_sure=true", "objective=bertscore_f1"])
    with pytest.raises(ConfigError, match=r"search\.stop_when_sure=true needs search\.indifference above 0"):
        compose(["search.stop_when_sure=true", "search.indifference=0"])
