"""`combined`, its interval and the gain."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pytest

from lorahydra.config.schema import EvaluationConfig
from lorahydra.evaluation.scoring import ExampleScores, combine, combined_interval, gain
from lorahydra.names import BERTSCORE, TuningEffect

CONFIG = EvaluationConfig()


def by_bertscore(f1: Sequence[float], judge: Sequence[float | None] | None, lowest: float = 0.0) -> ExampleScores:
    """Scores of examples without other metrics."""
    return ExampleScores({BERTSCORE: f1}, judge, lowest)


def normal(mean: float, count: int, seed: int) -> list[float]:
    return np.random.default_rng(seed).normal(mean, 0.1, count).tolist()


def test_the_example_of_the_documentation() -> None:
    assert round(combine({BERTSCORE: 0.8234}, 78.50, CONFIG), 4) == 0.8004
    assert combine({BERTSCORE: 0.8234}, None, CONFIG) == 0.8234


def test_the_weights_are_the_users() -> None:
    config = EvaluationConfig(bertscore_weight=0.25, judge_weight=0.75)
    assert combine({BERTSCORE: 0.8}, 40.0, config) == pytest.approx(0.25 * 0.8 + 0.75 * 0.4)


def test_the_interval_is_that_of_the_mean() -> None:
    scores = normal(0.7, 400, 0)
    interval = combined_interval(by_bertscore(scores, None), CONFIG, seed=1)
    error = float(np.std(scores)) / 20
    assert interval.mean == pytest.approx(np.mean(scores))
    assert interval.low == pytest.approx(interval.mean - 1.96 * error, abs=0.2 * error)
    assert interval.high == pytest.approx(interval.mean + 1.96 * error, abs=0.2 * error)


def test_the_same_seed_gives_the_same_interval() -> None:
    scores = by_bertscore(normal(0.7, 30, 0), None)
    assert combined_interval(scores, CONFIG, seed=1) == combined_interval(scores, CONFIG, seed=1)
    assert combined_interval(scores, CONFIG, seed=1) != combined_interval(scores, CONFIG, seed=2)


def test_a_missing_verdict_is_left_out_and_not_a_zero() -> None:
    with_gap = combined_interval(by_bertscore([0.5] * 4, [80.0, None, 80.0, 80.0]), CONFIG, seed=1)
    assert with_gap.mean == pytest.approx(0.4 * 0.5 + 0.6 * 0.8)


@pytest.mark.parametrize("judge", [None, [70.0]])
def test_one_example_tells_nothing(judge: list[float | None] | None) -> None:
    interval = combined_interval(by_bertscore([0.6], judge), CONFIG, seed=1)
    assert (interval.low, interval.high) == (0, 1)
    difference = gain(by_bertscore([0.9], judge), by_bertscore([0.1], judge), CONFIG, seed=1)
    assert (difference.low, difference.high, difference.count, difference.effect) == (-1, 1, 1, "too_few_examples")


def test_equal_scores_are_not_certain() -> None:
    for scores in (by_bertscore([1.0] * 20, None), by_bertscore(normal(0.5, 20, 0), [100.0] * 20)):
        interval = combined_interval(scores, CONFIG, seed=1)
        assert interval.low < interval.mean - 0.05, "one in six other answers may be wrong"
        assert interval.high <= 1
    same = gain(by_bertscore([0.5] * 20, None), by_bertscore([0.5] * 20, None), CONFIG, seed=1)
    assert same.low < -0.1
    assert same.high > 0.1


def test_equal_gains_are_clear_from_six_examples_on_as_in_a_sign_test() -> None:
    effects = [
        gain(by_bertscore([0.6] * count, None), by_bertscore([0.5] * count, None), CONFIG, seed=1).effect
        for count in range(1, 9)
    ]
    assert effects == [*[TuningEffect.TOO_FEW] * 4, TuningEffect.UNCLEAR, *[TuningEffect.HIGHER] * 3]


@pytest.mark.parametrize("judge", [None, [0.0, 100.0, 100.0, 100.0, None, None, 100.0]])
def test_intervals_stay_within_what_is_possible(judge: list[float | None] | None) -> None:
    interval = combined_interval(by_bertscore([1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0], judge), CONFIG, seed=1)
    assert 0 <= interval.low < interval.mean < interval.high == 1
    rescaled = by_bertscore([-4.0, 0.9, 0.8, 0.7, 0.9, 0.8, 0.9], judge, lowest=-5)
    assert -5 <= combined_interval(rescaled, CONFIG, seed=1).low < 0


def test_perfect_scores_that_rounding_lifts_above_one() -> None:
    interval = combined_interval(by_bertscore([1.0000001] * 6, None), CONFIG, seed=1)
    assert interval.low < interval.mean
    assert interval.high == pytest.approx(interval.mean)


def test_a_gain_on_every_example_is_clear_however_they_differ() -> None:
    untuned = normal(0.5, 24, 0)
    tuned = [score + 0.02 for score in untuned]
    helped = gain(by_bertscore(tuned, None), by_bertscore(untuned, None), CONFIG, seed=1)
    assert helped.mean == pytest.approx(0.02)
    assert helped.effect is TuningEffect.HIGHER, "what examples have in common cancels"


def test_noise_is_not_a_clear_gain() -> None:
    helped = gain(by_bertscore(normal(0.5, 24, 0), None), by_bertscore(normal(0.5, 24, 1), None), CONFIG, seed=1)
    assert helped.effect is TuningEffect.UNCLEAR
    assert helped.low < 0 < helped.high


def test_tuning_beside_prompting_in_one_sentence() -> None:
    good, bad = by_bertscore(normal(0.8, 40, 0), None), by_bertscore(normal(0.5, 40, 1), None)
    higher, lower, same = (
        gain(*pair, CONFIG, 1, shots=4).sentence for pair in ((good, bad), (bad, good), (good, good))
    )
    assert re.fullmatch(
        r"LoRA beats 4-shot prompting: its combined is higher by 0\.\d{4}, 95 % interval \+0\.\d{4} to \+0\.\d{4}",
        higher,
    )
    # The same numbers, from the other side.
    assert lower == higher.replace("LoRA beats 4-shot prompting", "4-shot prompting beats LoRA")
    assert same.startswith("No clear difference between LoRA and 4-shot prompting: combined differs by +0.0000, 95 %")
    few = gain(by_bertscore([0.5] * 3, None), by_bertscore([0.25] * 3, None), CONFIG, 1, shots=4).sentence
    assert few == (
        "3 examples are too few to say whether LoRA beats 4-shot prompting: at least 5 are needed "
        "(combined differs by +0.2500)"
    )
