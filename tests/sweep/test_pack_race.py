"""Which trials of a pack are compared, and what their study keeps of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from lorahydra.config.schema import LoraConfig
from lorahydra.errors import LorahydraError, TrialPruned
from lorahydra.names import State
from lorahydra.sweep.auto_sampler import as_numbers, comparable
from lorahydra.sweep.compat import suggest
from lorahydra.sweep.halving import HalvingPruner
from lorahydra.sweep.pack_race import PackRace
from lorahydra.sweep.running_trial import RunningTrial
from lorahydra.training import Standing

X: dict[str, BaseDistribution] = {"x": FloatDistribution(0, 1)}


@pytest.fixture
def study() -> optuna.Study:
    return optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=1))


def begin(study: optuna.Study, count: int, space: dict[str, BaseDistribution] = X, **given: Any) -> list[RunningTrial]:
    running = []
    for _ in range(count):
        study.enqueue_trial(given)
        trial = study.ask()
        for name, kind in space.items():
            suggest(trial, name, kind)
        running.append(RunningTrial(study, trial))
    return running


def compare(
    members: list[RunningTrial], *losses: float, loras: list[LoraConfig] | None = None, rates: Any = None
) -> dict[int, Any]:
    """Which members end at 1/4."""
    folders = [Path(str(trial.number)) for trial in members]
    jobs: list[Any] = [
        SimpleNamespace(output_dir=folder, lora=lora, training=SimpleNamespace(learning_rate=rate))
        for folder, lora, rate in zip(
            folders, loras or [LoraConfig()] * len(members), rates or range(len(members), 0, -1), strict=True
        )
    ]
    race = PackRace(HalvingPruner(), dict(zip(folders, members, strict=True)))
    return dict(race.ended(Standing(0.25, jobs, losses, [()] * len(members), ())))


def test_only_trials_whose_losses_mean_the_same_are_compared(study: optuna.Study) -> None:
    beta = "training.dpo_beta"
    drawn = begin(study, 4, {beta: FloatDistribution(0.01, 0.5)})
    assert len({trial.loss_scale for trial in drawn}) == 4
    assert compare(drawn, 0.1, 0.2, 0.3, 0.4) == {}
    epochs, study = "training.num_train_epochs", optuna.create_study()
    choice: dict[str, BaseDistribution] = {epochs: CategoricalDistribution([1, 3])}
    members = [*begin(study, 2, choice, **{epochs: 1}), *begin(study, 2, choice, **{epochs: 3})]
    assert set(compare(members, 0.6, 0.7, 0.1, 0.2)) == {1, 3}
    assert "is behind the 0.6000 of trial 0" in (members[1].failure or "")


def test_the_rate_counts_as_the_scaling_of_the_adapter_makes_it(study: optuna.Study) -> None:
    """The trials with the next higher rates than the leader's stay, here numbers 2 and 3."""
    loras = [LoraConfig(r=16)] * 4 + [LoraConfig(r=64, use_rslora=True), LoraConfig(r=16, plus_ratio=16.0)]
    rates = [2e-4, 1e-4, 3e-4, 4e-4, 2.1e-4, 2.2e-4]
    assert set(compare(begin(study, 6), 1.0, 1.05, 1.06, 1.3, 1.4, 1.5, loras=loras, rates=rates)) == {4, 5}


def test_the_sampler_compares_a_trial_that_was_ended_with_the_losses_of_others_at_the_same_point(
    study: optuna.Study,
) -> None:
    """At 1/4, before the first validation that is due, all losses are higher than at 1/3."""
    members = begin(study, 6)
    ended = compare(members, 2.6, 2.8, 3.0, 3.2, 2.9, 3.3, rates=[9, 8, 7, 6, 5, 4])
    assert set(ended) == {2, 3, 5}
    for trial, score in ((members[0], 0.7), (members[1], 0.6), (members[4], 0.5)):
        trial.in_race = True
        trial.measured(1.0 + score)
        trial.complete([score])
    # Another pack, of the same study.
    [best, worst] = begin(study, 2)
    [error] = compare([best, worst], 2.5, 2.85, rates=[2, 1]).values()
    assert isinstance(error, TrialPruned)
    trials = study.get_trials(deepcopy=False)
    seen = comparable(study, trials, X, as_numbers(X))
    assert seen[worst.number].value == 0.5, "as good as trial 4, whose loss was the next higher one"
    assert trials[worst.number].intermediate_values == {1: -2.85}


def test_a_trial_that_another_process_has_closed_does_not_end_its_pack(
    study: optuna.Study, caplog: pytest.LogCaptureFixture
) -> None:
    members = begin(study, 4)
    for trial in members[1:]:
        study.tell(trial.number, state=TrialState.FAIL)
    with pytest.raises(LorahydraError, match="trial 3 was closed by another process"):
        members.pop().measured(1.0)
    ended = compare(members, 1.0, 1.1, 1.2)
    assert {place: str(error) for place, error in ended.items()} == {
        place: f"trial {place} was closed by another process" for place in (1, 2)
    }
    assert [trial.state for trial in members] == [State.RUNNING, State.INTERRUPTED, State.INTERRUPTED]
    assert "Trial 2 was closed by another process" in caplog.text


def test_fractions_that_an_earlier_version_kept_are_known(study: optuna.Study) -> None:
    [trial] = begin(study, 1)
    trial.note(compared=[0.25, 0.5])
    assert trial.compared_at() == {0.25, 0.5}
    trial.complete([0.5])
    assert comparable(study, study.trials, X, as_numbers(X))[0].value == 0.5
