"""Which trials of a pack end at 1/4 and at 1/2 of their schedules."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import RandomSampler

from lorahydra.errors import TrialPruned
from lorahydra.sweep.halving import PRUNER, AutoPruner, Contender, HalvingPruner, halving_of, mark_begun
from lorahydra.sweep.loss_scale import log_scale, scale_parameters
from lorahydra.sweep.running_trial import RunningTrial
from lorahydra.sweep.search_space import SearchSpace
from lorahydra.sweep.study_store import SPEC, open_study


def pack(*losses: float, rates: tuple[float, ...] = ()) -> list[Contender]:
    """Trials with these losses, at rates that fall if none are given."""
    return [Contender(rate, loss) for rate, loss in zip(rates or range(len(losses), 0, -1), losses, strict=True)]


@pytest.mark.parametrize(
    ("losses", "ended"),
    [
        ((1.0,), []),
        ((1.0, 1.2), [1]),
        ((1.0, 1.2, 1.1), [1]),
        ((1.0, 1.3, 1.1, 1.2), [1, 3]),
        ((1.0, 1.4, 1.1, 1.3, 1.2), [1, 3]),
        ((1.0, 1.0, 1.0, 1.0), []),
    ],
)
def test_the_worse_half_ends(losses: tuple[float, ...], ended: list[int]) -> None:
    assert sorted(HalvingPruner().behind(pack(*losses))) == ended


@pytest.mark.parametrize(("neighbours", "ended"), [(0, [2, 3, 4]), (1, [2, 3]), (2, [2]), (3, [])])
def test_the_next_higher_rates_than_the_leaders_stay(neighbours: int, ended: list[int]) -> None:
    trials = pack(1.2, 1.1, 1.7, 1.8, 1.9, 1.0, rates=(1e-5, 2e-5, 8e-4, 4e-4, 2e-4, 1e-4))
    assert sorted(HalvingPruner(neighbours=neighbours).behind(trials)) == ended


def test_a_trial_within_the_noise_of_the_leader_stays() -> None:
    tokens = [10, 20, 10, 40]
    sure = Contender(1.0, 1.1, [11.0, 22.1, 10.9, 44.0])
    noisy = Contender(1.0, 1.1, [15.0, 10.0, 3.0, 60.0])
    near = Contender(1.0, 1.05, [10.5, 21.0, 10.5, 42.0])
    leader = Contender(2.0, 1.0, [10.0, 20.0, 10.0, 40.0])
    assert HalvingPruner().behind([leader, near, sure, noisy], tokens) == [2]
    assert sorted(HalvingPruner().behind([leader, near, sure, noisy])) == [2, 3], "without parts nothing is known"


@pytest.mark.parametrize(("setting", "said"), [({"fractions": [1.0]}, "fractions"), ({"neighbours": -1}, "neighbours")])
def test_a_setting_that_is_not_possible_is_refused(setting: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=f"{said}=.* is not allowed"):
        HalvingPruner(**setting)  # type: ignore[arg-type]


def test_packs_are_halved_by_default_in_new_studies_of_one_objective() -> None:
    study = optuna.create_study(pruner=AutoPruner())
    assert halving_of(study) is None, "a study of an earlier version keeps the median"
    mark_begun(study)
    assert halving_of(study) is study.pruner
    assert halving_of(optuna.create_study(pruner=HalvingPruner())) is not None
    assert halving_of(optuna.create_study(pruner=optuna.pruners.MedianPruner())) is None
    assert halving_of(optuna.create_study(directions=["minimize", "minimize"], pruner=HalvingPruner())) is None


def test_trials_that_are_trained_alone_are_pruned_by_the_median_or_not_at_all() -> None:
    for pruner, ended in ((AutoPruner(), True), (HalvingPruner(), False)):
        study = optuna.create_study(pruner=pruner)
        for loss in (1.0, 1.1, 1.2, 1.3):
            trial = study.ask()
            trial.report(loss, 1)
            study.tell(trial, loss)
        trial = study.ask()
        trial.report(2.0, 1)
        assert trial.should_prune() is ended


def test_a_study_is_marked_before_it_counts_as_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed in between leaves no study that would be taken for one of an earlier version."""
    settings: Any = SimpleNamespace(storage=None, sampler=RandomSampler(), pruner=AutoPruner(), n_trials=1)
    objective: Any = SimpleNamespace(study_name="s", directions=["minimize"], is_worker=False, stop_rule=None)
    objective.spec, objective.command = lambda space: {"objective": "loss"}, lambda: None
    named: list[str] = []
    monkeypatch.setattr(optuna.Study, "set_user_attr", lambda study, name, value: named.append(name))
    open_study(settings, objective, SearchSpace({}, {}, []))
    assert named.index(PRUNER) < named.index(SPEC)


@pytest.mark.parametrize(
    ("searched", "compares"),
    [
        ({"training.num_train_epochs": CategoricalDistribution([1, 3])}, False),
        ({"+training.dpo_beta": FloatDistribution(0.01, 0.5)}, False),
        ({"model": CategoricalDistribution(["a", "b"])}, False),
        ({"data.max_train_rows": IntDistribution(1, 9)}, False),
        ({"training.num_train_epochs": CategoricalDistribution([3])}, True),
        ({"lora": CategoricalDistribution(["lora", "dora"])}, True),
        ({"training.per_device_train_batch_size": CategoricalDistribution([2, 4])}, True),
    ],
)
def test_a_trial_alone_is_not_pruned_by_losses_that_mean_something_else(
    searched: dict[str, BaseDistribution], compares: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    study = optuna.create_study(pruner=AutoPruner())
    study.set_user_attr(SPEC, {"objective": "combined"})
    for loss in (1.0, 1.1, 1.2, 1.3):
        running = RunningTrial(study, study.ask(searched))
        running.measured(loss)
        running.complete([loss])
    running = RunningTrial(study, study.ask(searched))
    with nullcontext() if not compares else pytest.raises(TrialPruned):
        running.measured(2.0)
    log_scale(study, searched)
    assert ("do not compare" in caplog.text) is not compares
    assert len(scale_parameters(study)) == (not compares)


def test_batch_sizes_decide_the_length_where_the_number_of_steps_is_fixed() -> None:
    study = optuna.create_study()
    study.ask({"training.per_device_train_batch_size": CategoricalDistribution([2, 4])})
    study.set_user_attr(SPEC, {"objective": "combined", "training.max_steps": "100"})
    assert scale_parameters(study) == ["training.per_device_train_batch_size"]


def test_an_objective_that_does_not_compare_is_told(caplog: pytest.LogCaptureFixture) -> None:
    study = optuna.create_study()
    study.set_user_attr(SPEC, {"objective": "loss"})
    log_scale(study, {"training.num_train_epochs": CategoricalDistribution([1, 3])})
    assert "objective=loss" not in caplog.text
    log_scale(study, {"training.dpo_beta": FloatDistribution(0.01, 0.5)})
    assert "objective=loss: the losses of trials that differ in training.dpo_beta do not compare" in caplog.text


def test_the_models_of_another_program_compare() -> None:
    study = optuna.create_study()
    study.ask({"model": CategoricalDistribution(["a", "b"])})
    assert scale_parameters(study) == []
