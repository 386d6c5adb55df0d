"""What a study says at its end: whether tuning helped, which trial won, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lorahydra.names import FEW_SHOT, FEWEST_EXAMPLES, FORGETTING, TEST, Score, TuningEffect, is_forgotten, scored
from lorahydra.service.views import ChoiceView, FewShotView, ForgettingView

__all__ = ["finite", "outcome_of"]


FORGETTING_NUMBERS = ("loss", "loss_low", "loss_high", "checks_high", "checks_untuned", "checks_tuned", "count")
ENDS = {"low": Score.COMBINED_LOW, "high": Score.COMBINED_HIGH}


def outcome_of(entry: Any) -> dict[str, Any]:
    """What a study said at its end, as plain JSON by the names of `JobView`'s fields; `entry` is its `StudyEntry`."""
    test = entry.result.get("test", {})
    return {
        **_gain(entry.result),
        "few_shot": _few_shot(test),
        "forgetting": _forgetting(test),
        "choice": _choice(entry),
    }


def _gain(result: Mapping[str, Any]) -> dict[str, Any]:
    """Whether tuning helped, by the scores on the test split."""
    test = result.get("test", {})
    # Studies of earlier versions do not say how many rows and examples there were.
    rows = result.get("test_rows", None if test else 0)
    gain, low, high = (finite(test.get(scored(TEST, score))) for score in (Score.GAIN, Score.GAIN_LOW, Score.GAIN_HIGH))
    examples = test.get(scored(TEST, Score.GAIN_EXAMPLES))
    effect = TuningEffect.NO_BASELINE if test else TuningEffect.NO_TEST_ROWS
    if low is not None and high is not None:
        effect = TuningEffect.of(low, high, FEWEST_EXAMPLES if examples is None else int(examples))
    ends = {f"test_{end}": finite(test.get(scored(TEST, score))) for end, score in ENDS.items()}
    return {
        **ends,
        **{"gain": gain, "gain_low": low, "gain_high": high, "test_rows": rows, "verdict": effect.value},
        "gain_examples": None if examples is None else int(examples),
    }


def _few_shot(test: Mapping[str, Any]) -> dict[str, Any] | None:
    """Whether tuning is better than examples in the prompt."""
    shots = test.get(scored(FEW_SHOT, "shots"))
    names = (Score.GAIN, Score.GAIN_LOW, Score.GAIN_HIGH, Score.GAIN_EXAMPLES)
    gain, low, high, examples = (finite(test.get(scored(TEST, f"{FEW_SHOT}_{name}"))) for name in names)
    if shots is None or low is None or high is None or examples is None:
        return None
    view = FewShotView(
        shots=int(shots),
        score=finite(test.get(scored(FEW_SHOT, Score.COMBINED))),
        gain=gain,
        gain_low=low,
        gain_high=high,
        verdict=TuningEffect.of(low, high, int(examples)).value,
    )
    return asdict(view)


def _forgetting(test: Mapping[str, Any]) -> dict[str, Any] | None:
    """What tuning changed on general texts and instructions."""
    found = {name: finite(test.get(scored(FORGETTING, name))) for name in FORGETTING_NUMBERS}
    if any(value is None for value in found.values()):
        return None
    numbers = {name: float(value or 0) for name, value in found.items()}
    count = round(numbers["count"])
    view = ForgettingView(
        verdict="something" if is_forgotten(numbers["loss_low"], numbers["checks_high"]) else "nothing",
        loss=numbers["loss"],
        loss_low=numbers["loss_low"],
        loss_high=numbers["loss_high"],
        checks=count,
        checks_before=round(numbers["checks_untuned"] * count),
        checks_after=round(numbers["checks_tuned"] * count),
    )
    return asdict(view)


def _choice(entry: Any) -> dict[str, Any] | None:
    choice, trials = entry.choice, {trial.number: trial for trial in entry.trials}
    if choice is None:
        return None
    winner, best = trials[choice.winner], trials[choice.best]
    view = ChoiceView(
        winner=winner.number,
        reason=choice.why,
        best=best.number,
        winner_bytes=winner.adapter_bytes,
        best_bytes=best.adapter_bytes,
        p_best=choice.p_best[winner.number],
        set=list(choice.set),
        regret_bound=choice.regret_bound,
        examples=choice.examples,
        sentence=choice.sentences,
    )
    return asdict(view)


def finite(value: float | None) -> float | None:
    """The number if it is finite: JSON has no others."""
    return value if value is not None and math.isfinite(value) else None
