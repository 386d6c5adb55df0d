"""From sweeps to distributions."""

from __future__ import annotations

import math

import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from lorahydra.errors import ConfigError
from lorahydra.sweep.search_space import corners, grid_size, grid_values, on_step, read_space, size

SHIPPED = {"lora.r": "choice(8,16)", "training.learning_rate": "tag(log, interval(1e-5, 1e-3))"}
FIRST = {"lora.r": 16, "training.learning_rate": 2e-4}


def test_the_grammar_is_that_of_hydras_optuna_sweeper() -> None:
    space = read_space(
        ["a=interval(0, 1.5)", "b=range(1, 10, 3)", "c=choice(x,y)", "d=tag(log, interval(1, 100))", "e=3", "~f"],
        {},
        {},
        add_shipped=False,
    )
    assert space.distributions == {
        "a": FloatDistribution(0, 1.5),
        "b": IntDistribution(1, 7, step=3),
        "c": CategoricalDistribution(("x", "y")),
        "d": FloatDistribution(1, 100, log=True),
    }
    assert space.fixed == {"e": "3"}
    assert space.fixed_overrides == ["~f"]
    assert list(space.describe()) == ["a", "b", "c", "d"]


def test_the_shipped_space_serves_where_nothing_is_swept() -> None:
    space = read_space(["seed=1"], SHIPPED, FIRST, add_shipped=False)
    assert set(space.distributions) == set(SHIPPED)
    assert space.first_trial == FIRST


def test_a_sweep_of_ones_own_replaces_the_shipped_space() -> None:
    space = read_space(["a=choice(1,2)"], SHIPPED, FIRST, add_shipped=False)
    assert set(space.distributions) == {"a"}
    assert space.first_trial == {}


def test_both_spaces_together() -> None:
    space = read_space(["lora.r=choice(4,16)"], SHIPPED, FIRST, add_shipped=True)
    assert space.distributions["lora.r"] == CategoricalDistribution((4, 16))
    assert set(space.distributions) == set(SHIPPED)
    # What is good in the shipped space may be bad beside other values.
    assert space.first_trial == {}


def test_a_fixed_value_leaves_the_search() -> None:
    space = read_space(["lora.r=32"], SHIPPED, FIRST, add_shipped=False)
    assert set(space.distributions) == {"training.learning_rate"}
    assert space.fixed == {"lora.r": "32"}
    assert space.first_trial == {"training.learning_rate": 2e-4}


def test_a_first_trial_that_does_not_know_all_parameters_is_left_out() -> None:
    assert read_space([], SHIPPED | {"a": "choice(1,2)"}, FIRST, add_shipped=False).first_trial == {}


def test_words_of_the_first_trial_are_found_among_the_choices() -> None:
    space = read_space([], {"a": "choice(true,false)"}, {"a": True}, add_shipped=False)
    assert space.first_trial["a"] in space.distributions["a"].choices  # type: ignore[attr-defined]


def test_a_choice_that_is_listed_twice_is_tried_once(caplog: pytest.LogCaptureFixture) -> None:
    space = read_space(["lora.r=8,8,16", "a=choice(1,1.0,x)"], {}, {}, add_shipped=False)
    assert space.distributions["lora.r"] == CategoricalDistribution((8, 16))
    assert space.distributions["a"].choices == (1, 1.0, "x")  # type: ignore[attr-defined]
    assert [record.getMessage() for record in caplog.records] == ["lora.r: each of its choices is tried once: 8, 16"]


@pytest.mark.parametrize(
    ("arguments", "searched", "fixed"),
    [
        (["x=1", "x=8,16"], {"x": CategoricalDistribution((8, 16))}, {}),
        (["x=8,16", "x=1"], {}, {"x": "1"}),
        (["+x=8,16", "x=1"], {}, {"+x": "1"}),
        (["x=1", "++x=8,16"], {"++x": CategoricalDistribution((8, 16))}, {}),
        (
            ["x=8,16", "y=1,2", "x=interval(0, 1)"],
            {"x": FloatDistribution(0, 1), "y": CategoricalDistribution((1, 2))},
            {},
        ),
    ],
)
def test_the_last_override_of_a_key_counts(
    arguments: list[str], searched: dict[str, BaseDistribution], fixed: dict[str, str]
) -> None:
    space = read_space(arguments, {}, {}, add_shipped=False)
    assert list(space.distributions.items()) == list(searched.items())
    assert space.fixed == fixed


def test_the_shipped_space_serves_where_the_last_override_is_no_sweep() -> None:
    space = read_space(["lora.r=4,8", "lora.r=32"], SHIPPED, FIRST, add_shipped=False)
    assert set(space.distributions) == {"training.learning_rate"}
    assert space.fixed == {"lora.r": "32"}


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.9), (0.1, 0.7)])
def test_values_of_a_range_with_steps_are_those_of_its_grid(low: float, high: float) -> None:
    kind = FloatDistribution(low, high, step=0.1)
    values = grid_values(kind, 2)
    assert [on_step(kind, low + n * 0.1) for n in range(len(values))] == values
    assert on_step(FloatDistribution(0, 1), 0.1 + 0.2) == 0.1 + 0.2


@pytest.mark.parametrize(
    ("distribution", "expected"),
    [
        (CategoricalDistribution((8, 16)), [8, 16]),
        (IntDistribution(1, 9, step=4), [1, 5, 9]),
        (FloatDistribution(0, 1), [0, 1 / 3, 2 / 3, 1]),
        (FloatDistribution(1e-5, 1e-2, log=True), [1e-5, 1e-4, 1e-3, 1e-2]),
        (FloatDistribution(0, 0.4, step=0.1), [0, 0.1, 0.2, 0.3, 0.4]),
        (FloatDistribution(2, 2), [2]),
    ],
)
def test_the_values_of_a_grid(distribution: BaseDistribution, expected: list[float]) -> None:
    values = grid_values(distribution, 4)
    assert values == pytest.approx(expected, rel=1e-5)
    assert all(distribution._contains(distribution.to_internal_repr(value)) for value in values)


@pytest.mark.parametrize(("name", "value"), [("lora.r", 5), ("training.learning_rate", 1.0)])
def test_a_first_trial_outside_of_the_space(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"search.first_trial: {name}={value} is not in its search space"):
        read_space([], SHIPPED, FIRST | {name: value}, add_shipped=False)


@pytest.mark.parametrize("wrong", ["a=interval(2, 1)", "a=range(1, 1)", "a=glob(*)", "a=interval(", "a=[1"])
def test_a_sweep_that_cannot_be_used(wrong: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read_space([wrong], {}, {}, add_shipped=False)
    assert "\n" not in str(raised.value)
    assert wrong.partition("=")[0] in str(raised.value) or "low <= high" in str(raised.value)


@pytest.mark.parametrize(
    ("distributions", "expected"),
    [
        ([CategoricalDistribution("abc"), IntDistribution(0, 9, step=3)], 12),
        ([FloatDistribution(0, 0.3, step=0.1)], 4),
        ([FloatDistribution(0, 1)], math.inf),
        ([FloatDistribution(1, 1), IntDistribution(1, 2)], 2),
        ([], 1),
    ],
)
def test_size(distributions: list[CategoricalDistribution], expected: float) -> None:
    assert size({str(index): distribution for index, distribution in enumerate(distributions)}) == expected


@pytest.mark.parametrize("own", [[], ["lora.alpha=choice(1,2)"]])
def test_a_resumed_study_keeps_the_space_that_another_version_shipped(own: list[str]) -> None:
    kinds: dict[str, BaseDistribution] = {
        "lora.r": CategoricalDistribution((4, 8)),
        "lora.alpha": CategoricalDistribution((1, 2)),
        "lora.bias": CategoricalDistribution(("none", "all")),
        "lora.lora_dropout": FloatDistribution(0.0, 0.3, step=0.1),
        "training.learning_rate": FloatDistribution(1e-5, 1e-2, log=True),
        "training.steps": IntDistribution(1, 9, step=2),
    }
    begun = {name: str(kind) for name, kind in kinds.items()}
    space = read_space(own, SHIPPED, FIRST, add_shipped=bool(own), begun=begun)
    assert space.distributions == kinds
    assert space.describe() == dict(sorted(begun.items()))
    fixed = read_space(["lora.r=8", *own], SHIPPED, FIRST, add_shipped=bool(own), begun=begun)
    assert fixed.distributions == {name: kind for name, kind in kinds.items() if name != "lora.r"}


def test_a_first_trial_need_not_lie_in_the_space_that_another_version_shipped() -> None:
    begun = {"lora.r": str(CategoricalDistribution((4, 8))), "training.learning_rate": str(FloatDistribution(1e-5, 1))}
    assert read_space([], SHIPPED, FIRST, add_shipped=False, begun=begun).first_trial == {}


def test_a_resumed_study_keeps_the_order_of_its_parameters_which_samplers_depend_on() -> None:
    shipped = {"training.learning_rate": "interval(0.1, 1)", "training.max_grad_norm": "choice(inf, 1)", **SHIPPED}
    new = read_space([], shipped, {}, add_shipped=False)
    resumed = read_space([], shipped, {}, add_shipped=False, begun=new.describe())
    assert list(resumed.distributions.items()) == list(new.distributions.items())


def test_tiny_steps_are_not_written_out() -> None:
    tiny = FloatDistribution(0, 1, step=1e-15)
    assert size({"a": tiny}) == 10**15 + 1
    assert corners({"a": tiny}) == [{"a": 0}, {"a": 1}]


@pytest.mark.parametrize(
    "distribution",
    [
        CategoricalDistribution(("a", None, 3)),
        IntDistribution(2, 8, step=3),
        IntDistribution(1, 100, log=True),
        FloatDistribution(0, 1),
        FloatDistribution(0.5, 0.5),
        FloatDistribution(1e-5, 1e-3, log=True),
        FloatDistribution(0, 0.9, step=0.3),
        FloatDistribution(0.1, 0.7, step=0.1),
    ],
)
def test_a_grid_has_as_many_values_as_are_counted(distribution: BaseDistribution) -> None:
    assert len(grid_values(distribution, 4)) == grid_size(distribution, 4)
