"""The data from which the plots of a study are drawn."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial

from lorahydra.names import State
from lorahydra.sweep.labels import number, searched, short_names, value_text
from lorahydra.sweep.ranking import directions_of, ranked
from lorahydra.sweep.trial_record import TrialRecord, loss_sign, losses_of, trial_records

__all__ = ["Axis", "PlotData"]


@dataclass(frozen=True)
class Axis:
    """One parameter, or the score, on an axis."""

    label: str
    places: Sequence[float]
    """Position of each scored trial: the number, on a log axis its decimal logarithm, of a choice its index; NaN for a
    trial without this parameter."""
    ticks: Mapping[float, str]
    """Labels by position."""
    kind: str = "linear"
    """`linear`, `log` or `choice`."""

    def height(self, place: float) -> float:
        """Position between the first tick, 0, and the last one, 1."""
        low, high = min(self.ticks), max(self.ticks)
        return (place - low) / (high - low) if high > low else 0.5 + 0 * place


def _number_axis(label: str, values: Sequence[float | None], *, log: bool = False) -> Axis:
    places = [math.nan if value is None else math.log10(value) if log else float(value) for value in values]
    drawn = [place for place in places if not math.isnan(place)]
    ticks = [min(drawn) + (max(drawn) - min(drawn)) * step / 4 for step in range(5)]
    texts = {tick: number(10**tick if log else tick) for tick in ticks}
    return Axis(label, places, texts, kind="log" if log else "linear")


class PlotData:
    """A study, read once for all of its plots."""

    def __init__(self, study: optuna.Study, objectives: Sequence[str], winner: int | None = None) -> None:
        trials = study.get_trials(deepcopy=False)
        records = trial_records(study, trials)
        self.name = study.study_name
        self.objectives = objectives
        self.objective = objectives[0]
        self.directions = directions_of(study)
        self.scored = [record for record in records if _is_scored(record)]
        """Complete trials whose objectives are all finite, by number."""
        self.scores = [record.values[0] for record in self.scored if record.values]
        """First objective of each of them."""
        self.measured = [record for record in records if any(map(math.isfinite, record.losses.values()))]
        """Trials that reported a loss during training."""
        first = next(iter(ranked(self.scored, self.directions)), None)
        self.best = next((record for record in self.scored if record.number == winner), first)
        short = short_names(searched(self.scored))
        distributions = {name: kind for trial in trials for name, kind in trial.distributions.items()}
        self.axes = [_axis(name, label, distributions[name], self.scored) for name, label in short.items()]
        """All parameters of scored trials."""
        self.study = optuna.create_study(study_name=study.study_name, directions=study.directions)
        """The trials with short names of parameters and with their true losses."""
        self.study.add_trials([_shown(trial, short, loss_sign(study)) for trial in trials if trial.state.is_finished()])
        self.target: dict[str, Any] = {}
        """Argument with which Optuna takes the first of several objectives; with one it knows the direction itself."""
        if len(objectives) > 1:
            self.target = {"target": lambda trial: float(trial.values[0])}

    @property
    def score_axis(self) -> Axis:
        """The first objective."""
        return _number_axis(self.objective, self.scores)


def _is_scored(record: TrialRecord) -> bool:
    return record.state is State.COMPLETE and bool(record.values) and all(map(math.isfinite, record.values or ()))


def _axis(name: str, label: str, distribution: BaseDistribution, records: Sequence[TrialRecord]) -> Axis:
    if not isinstance(distribution, CategoricalDistribution):
        log = bool(getattr(distribution, "log", False))
        return _number_axis(label, [record.params.get(name) for record in records], log=log)
    used = [record.params[name] for record in records if name in record.params]
    # A study that is continued may have been given other choices.
    choices = list(dict.fromkeys(value for value in [*distribution.choices, *used] if value in used))
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in choices):
        choices.sort(key=float)
    places = [choices.index(record.params[name]) if name in record.params else math.nan for record in records]
    return Axis(label, places, {float(place): value_text(choice) for place, choice in enumerate(choices)}, "choice")


def _shown(trial: FrozenTrial, short: Mapping[str, str], sign: int) -> FrozenTrial:
    shown = copy.copy(trial)
    shown.params = {short.get(name, name): value for name, value in trial.params.items()}
    shown.distributions = {short.get(name, name): kind for name, kind in trial.distributions.items()}
    shown.intermediate_values = losses_of(trial, sign)
    return shown
