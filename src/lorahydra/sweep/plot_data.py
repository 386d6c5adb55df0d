"""The data from which the plots of a study are drawn."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial

from lorahydra.names import State
from lorahydra.sweep.labels import number, searched, short_names, value_text
from lorahydra.sweep.ranking import ranked
from lorahydra.sweep.trial_record import TrialRecord, trial_records

__all__ = ["Axis", "PlotData"]


@dataclass(frozen=True)
class Axis:
    """The positions of the values of one parameter, or of the score, on an axis."""

    name: str
    label: str
    log: bool = False
    choices: Sequence[Any] | None = None
    """Of a categorical parameter, in their order on the axis."""

    def place(self, value: Any) -> float:
        """Position of a value: on a log axis its decimal logarithm, of a choice its index."""
        if self.choices is not None:
            return float(self.choices.index(value))
        return math.log10(value) if self.log else float(value)

    def text(self, place: float) -> str:
        """The label at a position."""
        if self.choices is not None:
            return value_text(self.choices[round(place)])
        return number(10**place if self.log else place)


class PlotData:
    """A study, read once for all of its plots.

    Args:
        study: The study.
        objectives: Names of its objectives.
    """

    def __init__(self, study: optuna.Study, objectives: Sequence[str]) -> None:
        trials = study.get_trials(deepcopy=False)
        self.name = study.study_name
        self.objectives = objectives
        self.objective = objectives[0]
        self.directions = [direction.name.lower() for direction in study.directions]
        self.records = trial_records(trials)
        self.scored = [record for record in self.records if _is_scored(record)]
        """Complete trials whose objectives are all finite, by number."""
        self.timed = [record for record in self.scored if record.seconds is not None]
        self.measured = [record for record in self.records if any(map(math.isfinite, record.losses.values()))]
        """Trials that reported a loss during training."""
        self.best = next(iter(ranked(self.scored, self.directions)), None)
        short = short_names(searched(self.scored))
        distributions = {name: kind for trial in trials for name, kind in trial.distributions.items()}
        self.axes = [_axis(name, short[name], distributions[name], self.scored) for name in short]
        """The axes of all parameters of complete trials."""
        self.study = optuna.create_study(study_name=study.study_name, directions=study.directions)
        """The trials with short names of parameters and with their true losses."""
        self.study.add_trials([_shown(trial, short) for trial in trials if trial.state.is_finished()])

    def score(self, record: TrialRecord) -> float:
        """First objective of a complete trial."""
        return record.values[0] if record.values else math.nan


def _is_scored(record: TrialRecord) -> bool:
    return record.state is State.COMPLETE and bool(record.values) and all(map(math.isfinite, record.values or ()))


def _axis(name: str, label: str, distribution: BaseDistribution, records: Sequence[TrialRecord]) -> Axis:
    if not isinstance(distribution, CategoricalDistribution):
        return Axis(name, label, log=bool(getattr(distribution, "log", False)))
    used = [record.params[name] for record in records if name in record.params]
    # A study that is continued may have been given other choices.
    choices = list(dict.fromkeys(value for value in [*distribution.choices, *used] if value in used))
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in choices):
        choices.sort(key=float)
    return Axis(name, label, choices=choices)


def _shown(trial: FrozenTrial, short: dict[str, str]) -> FrozenTrial:
    shown = copy.copy(trial)
    shown.params = {short.get(name, name): value for name, value in trial.params.items()}
    shown.distributions = {short.get(name, name): kind for name, kind in trial.distributions.items()}
    # A study that maximises records losses with the opposite sign.
    shown.intermediate_values = {step: abs(loss) for step, loss in trial.intermediate_values.items()}
    return shown
