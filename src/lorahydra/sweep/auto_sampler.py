"""`sampler=auto`: the sampler that suits a study, which knows that numbers have an order.

A choice of numbers, such as `choice(8, 16, 32, 64)`, is searched as an ordered range. The first trials are spread over
the space. Then a Gaussian process chooses where everything has an order, and TPE where it has not. It is that of
`lorahydra.sweep.surrogate`: fits of a single one, as in Optuna's sampler, take a score that drops steeply at low
rates for noise, and go back there (docs/choosing.md). A trial that failed counts as bad as the worst one, so that the
search leaves its neighbourhood.

What is drawn depends only on the seed, the number of the trial and the trials before, so nothing has to be kept.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from scipy.stats import qmc

from lorahydra.evaluation.intervals import Floats
from lorahydra.sweep.compat import quietly
from lorahydra.sweep.loss_scale import scale_parameters
from lorahydra.sweep.probable import probable_values
from lorahydra.sweep.search_space import on_step, share
from lorahydra.sweep.surrogate import around, most_promising
from lorahydra.sweep.trial_record import compared_losses, counted, losses_of, trial_facts

__all__ = ["AutoSampler", "as_numbers", "comparable"]

LARGEST_FIT = 100
"""Trials that a Gaussian process still learns from quickly."""
OUTLIER = 5
"""How many times as far from the median as the best value a bad one counts at most: a Gaussian process that has to
explain a single extreme value takes all others for equal."""
SPREAD, NEAR, LEADERS = 256, 64, 4
"""Settings that a Gaussian process compares: so many over the whole space, and so many near the best ones."""
TRIES = 100
"""Draws until a setting is found that no trial had."""


class AutoSampler(BaseSampler):
    """The sampler.

    Args:
        seed: Of all draws, 0 or more; None is 0.
        n_startup_trials: Trials that are spread over the space before results decide, 0 or more.

    Raises:
        ValueError: A number is negative.
    """

    def __init__(self, seed: int | None = None, n_startup_trials: int = 4) -> None:
        for name, value in {"seed": seed or 0, "n_startup_trials": n_startup_trials}.items():
            if value < 0:
                raise ValueError(f"{name}={value} is not allowed: it must be at least 0")
        self.seed = seed
        self.n_startup_trials = n_startup_trials
        self._space: dict[str, BaseDistribution] = {}

    def fit(self, space: Mapping[str, BaseDistribution]) -> None:
        """Take the search space, which must be complete. The order of its parameters decides what is drawn."""
        self._space = {name: kind for name, kind in space.items() if not kind.single()}

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All parameters of the space."""
        return self._space

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The parameters of a trial."""
        if not search_space:
            return {}
        earlier = [t for t in counted(study.get_trials(deepcopy=False)) if t.number < trial.number]
        known = [t for t in earlier if search_space.keys() <= t.params.keys()]
        tried = {_key(t.params, search_space) for t in known}
        number = len(earlier)
        params = self._spread(number, search_space)
        if number >= self.n_startup_trials and any(t.state is TrialState.COMPLETE for t in known):
            params = self._learned(study, known, number, search_space) or params
        draws = 0
        while _key(params, search_space) in tried and draws < TRIES:
            draws += 1
            params = self._spread(number + draws, search_space)
        return {name: on_step(search_space[name], value) for name, value in params.items()}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A parameter outside of the space, at random."""
        number = sum(t.number < trial.number for t in counted(study.get_trials(deepcopy=False)))
        random = RandomSampler(seed=self._seed_of(number, param_name))
        return random.sample_independent(study, trial, param_name, param_distribution)

    def _seed_of(self, *what: object) -> int:
        content = json.dumps([self.seed or 0, *what]).encode()
        return int.from_bytes(hashlib.blake2b(content, digest_size=4).digest())

    def _spread(self, number: int, space: Mapping[str, BaseDistribution]) -> dict[str, Any]:
        """A point of a sequence that covers the space evenly, and each parameter by itself."""
        sequence = qmc.Sobol(len(space), scramble=True, rng=np.random.default_rng(self.seed or 0))
        if number:
            sequence.fast_forward(number)
        [point] = sequence.random(1)
        return _setting(space, point.tolist())

    def _learned(
        self, study: optuna.Study, known: Sequence[FrozenTrial], number: int, space: Mapping[str, BaseDistribution]
    ) -> dict[str, Any] | None:
        """What the trials before suggest; None if they suggest nothing new."""
        ordered = as_numbers(space)
        seen = comparable(study, known, space, ordered)
        has_order = not any(isinstance(kind, CategoricalDistribution) for kind in ordered.values())
        if has_order and len(known) <= LARGEST_FIT and len(study.directions) == 1:
            sign = 1 if study.direction is StudyDirection.MAXIMIZE else -1
            drawn = self._modelled(seen, sign, number, ordered)
        else:
            sampler = TPESampler(seed=self._seed_of(number), n_startup_trials=1, multivariate=True, constant_liar=True)
            with quietly():
                inner = optuna.create_study(directions=study.directions, sampler=sampler)
                inner.add_trials(seen)
                drawn = inner.ask(ordered).params
        return drawn and {name: _value(kind, drawn[name]) for name, kind in space.items()}

    def _modelled(
        self, seen: Sequence[FrozenTrial], sign: int, number: int, ordered: Mapping[str, BaseDistribution]
    ) -> dict[str, Any] | None:
        """The setting of which the Gaussian process expects most; None if none is new, or all scores are equal."""

        def places(settings: Sequence[Mapping[str, Any]]) -> Floats:
            rows = [[share(kind, setting[name]) for name, kind in ordered.items()] for setting in settings]
            return np.array(rows, dtype=np.float64).reshape(len(rows), len(ordered))

        ended = [trial for trial in seen if trial.values is not None]
        scores = sign * np.array([trial.value for trial in ended], dtype=np.float64)
        if np.ptp(scores) == 0:
            return None
        points, draws = places([trial.params for trial in ended]), np.random.default_rng(self._seed_of(number))
        wide = qmc.Sobol(len(ordered), scramble=True, rng=draws).random(SPREAD)
        close = around(points[np.argsort(-scores, kind="stable")[:LEADERS]], NEAR, draws)
        tried = {_key(trial.params, ordered) for trial in seen}
        settings = [_setting(ordered, row) for row in np.concatenate([wide, close]).tolist()]
        new = [setting for setting in settings if _key(setting, ordered) not in tried]
        if not new:
            return None
        running = places([trial.params for trial in seen if trial.values is None])
        return new[most_promising(points, scores, places(new), running, draws=draws)]


def _key(params: Mapping[str, Any], space: Mapping[str, BaseDistribution]) -> str:
    return json.dumps([on_step(kind, params[name]) for name, kind in space.items()])


def _numbers(kind: BaseDistribution) -> list[float] | None:
    """The choices in their order, if all are numbers."""
    if not isinstance(kind, CategoricalDistribution):
        return None
    numbers = [each for each in kind.choices if isinstance(each, int | float) and not isinstance(each, bool)]
    return sorted(numbers) if len(numbers) == len(kind.choices) else None


def _ordered(kind: BaseDistribution) -> BaseDistribution:
    """The distribution of what a Gaussian process sees: the place of a number among the choices."""
    numbers = _numbers(kind)
    return kind if numbers is None else IntDistribution(0, len(numbers) - 1)


def as_numbers(space: Mapping[str, BaseDistribution]) -> dict[str, BaseDistribution]:
    """The space in which numbers have their order."""
    return {name: _ordered(kind) for name, kind in space.items()}


def _value(kind: BaseDistribution, drawn: Any) -> Any:
    numbers = _numbers(kind)
    return drawn if numbers is None else numbers[drawn]


def _setting(space: Mapping[str, BaseDistribution], row: Sequence[float]) -> dict[str, Any]:
    return {name: _at(kind, place) for (name, kind), place in zip(space.items(), row, strict=True)}


def _at(kind: BaseDistribution, place: float) -> Any:
    """The value at a place in the range, 0 to 1; of a choice below 1."""
    if isinstance(kind, CategoricalDistribution):
        choices = _numbers(kind) or kind.choices
        return choices[int(place * len(choices))]
    assert isinstance(kind, IntDistribution | FloatDistribution), "Optuna has no other kind"
    low, high = float(kind.low), float(kind.high)
    if isinstance(kind, IntDistribution) or kind.step is not None:
        step = float(kind.step or 1)
        if not kind.log:
            # The sum of floats may be just above the highest value.
            value = min(high, low + step * int(place * (round((high - low) / step) + 1)))
        else:
            value = float(round(low * (high / low) ** place))
        return int(value) if isinstance(kind, IntDistribution) else value
    return min(high, low * (high / low) ** place if kind.log else low + (high - low) * place)


def comparable(
    study: optuna.Study,
    known: Sequence[FrozenTrial],
    space: Mapping[str, BaseDistribution],
    ordered: Mapping[str, BaseDistribution],
) -> list[FrozenTrial]:
    """The trials as a model sees them: no value is extreme, and those that failed or cannot win have the worst one.

    A trial that was ended early is taken for as good as the complete one whose loss was the next higher at that time.

    Of judged trials it sees what their scores probably are (`lorahydra.sweep.probable`).

    Args:
        study: The study.
        known: Its trials that have all parameters of the space.
        space: The space.
        ordered: What `as_numbers` makes of it.
    """
    probable = probable_values(known)
    complete = [trial for trial in known if trial.state is TrialState.COMPLETE]
    # One that cannot win is as bad as one that failed, unless all are so.
    allowed = [trial for trial in complete if trial_facts(trial).get("excluded") is None] or complete
    told = {trial.number: [probable[trial.number]] if trial.number in probable else trial.values for trial in allowed}
    signs = [-1 if direction is StudyDirection.MAXIMIZE else 1 for direction in study.directions]
    worst = []
    for sign, column in zip(signs, zip(*told.values(), strict=True), strict=True):
        finite = [value for value in column if math.isfinite(value)] or [0.0]
        bad, centre = max(sign * value for value in finite), sign * statistics.median(finite)
        reach = OUTLIER * (centre - min(sign * value for value in finite))
        worst.append(sign * (min(bad, centre + reach) if reach else bad))
    scale, seen = scale_parameters(study), []
    for trial in known:
        values = told.get(trial.number)
        if values is None and trial.state.is_finished():
            alike = [one for one in allowed if all(one.params.get(name) == trial.params.get(name) for name in scale)]
            # Nothing is known of one that an earlier version ended by losses that do not compare.
            is_known = trial.state is TrialState.FAIL or alike
            values = (_as_good(trial, alike, told, signs[0]) or worst) if is_known else None
        if values is not None:
            pairs = zip(signs, values, worst, strict=True)
            values = [
                sign * min(sign * value, sign * bad) if math.isfinite(value) else bad for sign, value, bad in pairs
            ]
        state = TrialState.RUNNING if values is None else TrialState.COMPLETE
        params = {name: _place(kind, trial.params[name]) for name, kind in space.items()}
        with suppress(ValueError):  # set by hand, to something outside of the space
            seen.append(create_trial(state=state, values=values, params=params, distributions=dict(ordered)))
    return seen


def _as_good(
    ended: FrozenTrial, complete: Sequence[FrozenTrial], told: Mapping[int, Sequence[float]], sign: int
) -> Sequence[float] | None:
    """The values of the complete trial whose loss was the next higher one when a trial was ended; None if none was."""
    if ended.state is not TrialState.PRUNED or not ended.intermediate_values:
        return None

    # Where a pack is compared no validation need be due, so its trials have no measurement of the same number.
    def measured(trial: FrozenTrial) -> Mapping[Any, float]:
        return compared_losses(trial) if compared_losses(ended) else losses_of(trial, sign)

    point, loss = max(measured(ended).items())
    losses = {trial.number: measured(trial)[point] for trial in complete if point in measured(trial)}
    higher = [number for number, other in losses.items() if other >= loss]
    return told[min(higher, key=lambda number: losses[number])] if higher else None


def _place(kind: BaseDistribution, value: Any) -> Any:
    """What stands for a value in the distribution that `_ordered` returns."""
    numbers = _numbers(kind)
    return value if numbers is None else numbers.index(value) if value in numbers else -1
