"""Samplers that go on where they were."""

from __future__ import annotations

import json
from collections.abc import Callable

import optuna
import pytest
from optuna.samplers import BaseSampler, NSGAIISampler, QMCSampler, RandomSampler, TPESampler

from lorahydra.sweep.sampler_state import SAMPLER, keep_sampler, random_state, restore_random_state, restore_sampler

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

SAMPLERS: dict[str, Callable[[], BaseSampler]] = {
    "random": lambda: RandomSampler(seed=1),
    "unseeded": RandomSampler,
    "tpe": lambda: TPESampler(seed=1, n_startup_trials=2),
    "multivariate": lambda: TPESampler(seed=1, n_startup_trials=2, multivariate=True, constant_liar=True),
    "nsgaii": lambda: NSGAIISampler(seed=1, population_size=2),
    "qmc": lambda: QMCSampler(seed=1),
}


def draw(study: optuna.Study, count: int) -> list[dict[str, float]]:
    drawn = []
    for _ in range(count):
        trial = study.ask()
        value = (
            trial.suggest_float("x", 0, 1) + trial.suggest_categorical("c", [1, 2, 3]) + trial.suggest_int("i", 0, 9)
        )
        study.tell(trial, value)
        drawn.append(trial.params)
    return drawn


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_next_draws_are_those_of_the_first_sampler(name: str) -> None:
    study = optuna.create_study(sampler=SAMPLERS[name]())
    draw(study, 5)
    keep_sampler(study, 4)
    other = optuna.create_study(sampler=SAMPLERS[name]())
    other.add_trials(study.trials)
    for key, value in study._storage.get_study_system_attrs(study._study_id).items():
        if not isinstance(value, list):
            other._storage.set_study_system_attr(other._study_id, key, value)
    expected = draw(study, 4)
    # As if it had drawn what was lost.
    other.sampler.reseed_rng()
    other.set_user_attr(SAMPLER, json.loads(json.dumps(study.user_attrs[SAMPLER])))
    restore_sampler(other)
    assert draw(other, 4) == expected


def test_a_place_in_a_sequence_that_was_lost_is_taken_again() -> None:
    study = optuna.create_study(sampler=QMCSampler(seed=1))
    draw(study, 3)
    keep_sampler(study, 2)
    lost = study.ask()
    lost.suggest_float("x", 0, 1)
    study.tell(lost, state=optuna.trial.TrialState.FAIL)
    restore_sampler(study)
    again = study.ask()
    assert again.suggest_float("x", 0, 1) == lost.params["x"]


def test_a_gaussian_number_in_store() -> None:
    sampler, other = RandomSampler(seed=1), RandomSampler(seed=2)
    sampler._rng.rng.normal()
    restore_random_state(other, random_state(sampler))
    assert sampler._rng.rng.normal() == other._rng.rng.normal()


def test_another_sampler_stays_as_it_is() -> None:
    sampler = RandomSampler(seed=1)
    before = random_state(sampler)
    restore_random_state(sampler, {"_other": {}})
    assert random_state(sampler) == before


def test_generators_of_inner_samplers_are_kept() -> None:
    assert set(random_state(TPESampler(seed=1))) >= {"_rng", "_random_sampler._rng"}
