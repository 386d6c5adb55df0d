"""A study's plots as matplotlib figures.

They are drawn on figures of their own, not with `optuna.visualization.matplotlib`: that goes through pyplot, which
picks a backend and a style for the whole process, keeps figures open and may want a display or the main thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection

from lorahydra.names import State
from lorahydra.sweep.labels import number, searched, short_names, value_text
from lorahydra.sweep.leaderboard import pareto_front, ranked
from lorahydra.sweep.trial_record import TrialRecord, trial_records

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["PICTURES", "Axis", "Trials", "read_trials"]

BLUE, RED, GREY = "#4477aa", "#cc3311", "#aaaaaa"
COLOURS = "viridis"
MOST_NUMBERED = 40
"""With more points than this their trial numbers would cover each other."""
PANELS_IN_A_ROW = 3


@dataclass(frozen=True)
class Axis:
    """Where the values of one parameter lie on an axis."""

    name: str
    label: str
    log: bool = False
    choices: tuple[Any, ...] | None = None
    """Of a categorical parameter, in their order on the axis."""

    def place(self, value: Any) -> float:
        """Position of a value; for a log axis its decimal logarithm, for a choice its index."""
        if self.choices is not None:
            return float(self.choices.index(value))
        return math.log10(value) if self.log else float(value)

    def text(self, place: float) -> str:
        """What stands at a position."""
        if self.choices is not None:
            return _plain(value_text(self.choices[round(place)]))
        return number(10**place if self.log else place)


@dataclass(frozen=True)
class Trials:
    """What the figures show of a study."""

    study: optuna.Study
    records: Sequence[TrialRecord]
    objectives: Sequence[str]
    axes: Sequence[Axis]
    """Of all parameters of complete trials."""

    @property
    def objective(self) -> str:
        """Name of the first objective."""
        return self.objectives[0]

    @property
    def directions(self) -> list[str]:
        """`maximize` or `minimize` for every objective."""
        return ["maximize" if one is StudyDirection.MAXIMIZE else "minimize" for one in self.study.directions]

    @cached_property
    def scored(self) -> list[TrialRecord]:
        """Complete trials whose objectives are all finite, by number."""
        return [one for one in self.records if _is_scored(one)]

    @cached_property
    def timed(self) -> list[TrialRecord]:
        """Those of them whose wall time is known."""
        return [one for one in self.scored if one.seconds is not None]

    @cached_property
    def measured(self) -> list[TrialRecord]:
        """Trials that reported a loss on the way."""
        return [one for one in self.records if any(map(math.isfinite, one.losses.values()))]

    @cached_property
    def best(self) -> TrialRecord | None:
        """The best trial."""
        return next(iter(ranked(self.scored, self.directions)), None)

    def score(self, record: TrialRecord) -> float:
        """First objective of a complete trial."""
        return record.values[0] if record.values else math.nan


def read_trials(study: optuna.Study, objectives: Sequence[str]) -> Trials:
    """Read a study once for all its figures."""
    trials = study.get_trials(deepcopy=False)
    records = trial_records(trials)
    scored = [one for one in records if _is_scored(one)]
    distributions = {name: kind for trial in trials for name, kind in trial.distributions.items()}
    short = short_names(searched(scored))
    axes = [_axis(name, short[name], distributions[name], scored) for name in short]
    return Trials(study, records, objectives, axes)


def _is_scored(record: TrialRecord) -> bool:
    return record.state is State.COMPLETE and bool(record.values) and all(map(math.isfinite, record.values or ()))


def _axis(name: str, label: str, distribution: Any, records: Sequence[TrialRecord]) -> Axis:
    if isinstance(distribution, CategoricalDistribution):
        used = [record.params[name] for record in records if name in record.params]
        # A study that is continued may have been given other choices.
        choices = list(dict.fromkeys(value for value in [*distribution.choices, *used] if value in used))
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in choices):
            choices.sort(key=float)
        return Axis(name, _plain(label), choices=tuple(choices))
    log = isinstance(distribution, FloatDistribution | IntDistribution) and distribution.log
    return Axis(name, _plain(label), log=log)


def _plain(text: str) -> str:
    # Matplotlib takes what stands between two dollars for a formula.
    return text.replace("$", r"\$")


def _figure(width: float = 7.5, height: float = 4.8) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _plot(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    figure = _figure()
    axes = figure.add_subplot()
    axes.set_title(title)
    axes.set_xlabel(_plain(x))
    axes.set_ylabel(_plain(y))
    _tidy(axes)
    return figure, axes


def _tidy(axes: Axes) -> None:
    axes.grid(color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _whole_numbers(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _history(trials: Trials) -> Figure:
    figure, axes = _plot("Score of each trial", "trial", trials.objective)
    numbers = [one.number for one in trials.scored]
    scores = [trials.score(one) for one in trials.scored]
    best = list(accumulate(scores, max if trials.directions[0] == "maximize" else min))
    axes.step(numbers, best, where="post", color=RED, label="best so far")
    axes.scatter(numbers, scores, color=BLUE, zorder=3, label="trial")
    _whole_numbers(axes)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def _importance(trials: Trials) -> Figure:
    several = len(trials.objectives) > 1
    target = (lambda trial: float(trial.values[0])) if several else None
    found = optuna.importance.get_param_importances(trials.study, target=target)
    labels = {axis.name: axis.label for axis in trials.axes}
    names = sorted(found, key=lambda name: found[name])
    figure, axes = _plot("Importance of parameters", f"share of the difference in {trials.objective}", "")
    bars = axes.barh([labels[name] for name in names], [found[name] for name in names], color=BLUE)
    axes.bar_label(bars, fmt="%.2f", padding=4)
    axes.margins(x=0.12)
    figure.set_figheight(max(2.4, 1.4 + 0.42 * len(names)))
    return figure


def _parallel(trials: Trials) -> Figure:
    """One upright axis per parameter, one line per trial, in the colour of its score; the best trial is on top."""
    figure = _figure(max(7.5, 1.6 * len(trials.axes) + 3))
    axes = figure.add_subplot()
    axes.set_title("Parameters and score", pad=14)
    score = Axis("", _plain(trials.objective))
    columns = [(score, [trials.score(one) for one in trials.scored])]
    columns += [(axis, [_placed(axis, one) for one in trials.scored]) for axis in trials.axes]
    heights = [_upright(axes, index, axis, places) for index, (axis, places) in enumerate(columns)]
    colours = _colour_bar(figure, axes, trials)
    lines = {one.number: line for one, line in zip(trials.scored, zip(*heights, strict=True), strict=True)}
    faint = _faint(len(lines))
    for one in reversed(ranked(trials.scored, trials.directions)):
        best = one is trials.best
        colour = colours(trials.score(one))
        axes.plot(lines[one.number], color=colour, linewidth=3 if best else 1.4, alpha=1 if best else faint)
    axes.set_xticks(range(len(columns)), [_wrapped(axis.label) for axis, _ in columns])
    axes.tick_params(axis="x", length=0, pad=10)
    axes.set_yticks([])
    axes.set_xlim(-0.35, len(columns) - 0.9)
    axes.spines[:].set_visible(False)
    return figure


def _faint(lines: int) -> float:
    """Opacity of one line among many."""
    return max(0.2, min(0.75, 20 / lines))


def _placed(axis: Axis, record: TrialRecord) -> float:
    return axis.place(record.params[axis.name]) if axis.name in record.params else math.nan


def _wrapped(label: str) -> str:
    return label if len(label) <= 14 else label.replace("_", "_\n").replace(".", ".\n")


def _upright(axes: Axes, x: int, axis: Axis, places: Sequence[float]) -> list[float]:
    """Draw an axis with its values and return the heights, 0 to 1, of what lies on it."""
    known = [place for place in places if not math.isnan(place)]
    low, high = min(known), max(known)
    span = high - low
    if axis.choices is not None:
        ticks = [float(index) for index in range(len(axis.choices))]
        low, span = 0.0, float(len(axis.choices) - 1)
    else:
        ticks = [low + span * step / 4 for step in range(5)] if span else [low]

    def height(place: float) -> float:
        return (place - low) / span if span else 0.5 + 0 * place

    axes.axvline(x, color="#888888", linewidth=1, zorder=1)
    for tick in ticks:
        axes.annotate(
            axis.text(tick),
            (x, height(tick)),
            xytext=(-5, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=8,
            zorder=5,
            bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8},
        )
    return [height(place) for place in places]


def _colour_bar(figure: Figure, axes: Axes, trials: Trials) -> Callable[[float], Any]:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    scores = [trials.score(one) for one in trials.scored]
    # The brightest colour is hard to see on white, so the scale ends above the best score or below the worst.
    reach = (max(scores) - min(scores)) * 0.08
    scale = ScalarMappable(Normalize(min(scores), max(scores) + reach), COLOURS)
    figure.colorbar(scale, ax=axes, label=_plain(trials.objective), pad=0.02)
    return lambda score: scale.to_rgba(np.array([score]))[0]


def _slices(trials: Trials) -> Figure:
    """One panel per parameter: its values against the score."""
    columns = min(PANELS_IN_A_ROW, len(trials.axes))
    rows = math.ceil(len(trials.axes) / columns)
    figure = _figure(max(5.0, 3.4 * columns + 1), 3.2 * rows + 0.6)
    figure.suptitle("Score by parameter")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel().tolist()
    for axis, axes in zip(trials.axes, panels, strict=False):
        _slice(trials, axis, axes)
    for index, axes in enumerate(panels):
        if index % columns == 0:
            axes.set_ylabel(_plain(trials.objective))
    for axes in panels[len(trials.axes) :]:
        axes.set_visible(False)
    return figure


def _slice(trials: Trials, axis: Axis, axes: Axes) -> None:
    shown = [one for one in trials.scored if axis.name in one.params]
    best = [one for one in shown if one is trials.best]
    for records, colour in ((shown, BLUE), (best, RED)):
        places = [axis.place(one.params[axis.name]) for one in records]
        values = [10**place if axis.log else place for place in places]
        axes.scatter(values, [trials.score(one) for one in records], color=colour)
    axes.set_xlabel(axis.label)
    _tidy(axes)
    if axis.log:
        axes.set_xscale("log")
    if axis.choices is not None:
        texts = [axis.text(index) for index in range(len(axis.choices))]
        axes.set_xticks(range(len(texts)), texts, rotation=30 if sum(map(len, texts)) > 24 else 0)
        axes.set_xlim(-0.5, len(axis.choices) - 0.5)


def _intermediate(trials: Trials) -> Figure:
    """Validation loss on the way of every trial; pruned ones end with a cross."""
    figure, axes = _plot("Validation loss during training", "evaluation", "validation loss")
    named: set[str] = set()
    for one in trials.measured:
        steps = sorted(step for step, loss in one.losses.items() if math.isfinite(loss))
        losses = [one.losses[step] for step in steps]
        kind, style = _line(one, trials)
        label = None if kind in named else kind
        named.add(kind)
        axes.plot(steps, losses, marker=".", label=label, **style)
        if one.state is State.PRUNED:
            axes.plot(steps[-1:], losses[-1:], marker="x", color="#555555", zorder=5)
    _whole_numbers(axes)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure


def _line(record: TrialRecord, trials: Trials) -> tuple[str, dict[str, Any]]:
    best = trials.best
    if best is not None and record.number == best.number:
        return f"best, trial {record.number}", {"color": RED, "linewidth": 2.5, "zorder": 4}
    if record.state is State.COMPLETE:
        return "complete", {"color": BLUE, "alpha": _faint(len(trials.measured)), "linewidth": 1.2, "zorder": 3}
    if record.state is State.PRUNED:
        return "pruned", {"color": GREY, "linestyle": "--"}
    return "not finished", {"color": "#ddaa33", "linestyle": ":"}


def _time(trials: Trials) -> Figure:
    figure, axes = _plot("Time against score", "wall time, s", trials.objective)
    best = {one.number for one in pareto_front(trials.scored, trials.directions)}
    label = "best" if len(trials.objectives) == 1 else "Pareto front"
    _points(axes, [(one, one.seconds or 0.0, trials.score(one)) for one in trials.timed], best, label)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def _front(trials: Trials) -> Figure:
    """The first objective against the second and, beside it, against the third."""
    figure = _figure() if len(trials.objectives) == 2 else _figure(11.5)
    best = {one.number for one in pareto_front(trials.scored, trials.directions)}
    for column in range(1, len(trials.objectives)):
        axes = figure.add_subplot(1, len(trials.objectives) - 1, column)
        axes.set_xlabel(_plain(trials.objective))
        axes.set_ylabel(_plain(trials.objectives[column]))
        _tidy(axes)
        points = [(one, one.values[0], one.values[column]) for one in trials.scored if one.values]
        _points(axes, points, best, "Pareto front")
    figure.suptitle("Pareto front")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def _points(axes: Axes, points: Sequence[tuple[TrialRecord, float, float]], best: set[int], label: str) -> None:
    """Scatter trials, with their numbers where there is room for them."""
    from matplotlib.patheffects import withStroke

    for kind, colour in ((label, RED), ("trial", BLUE)):
        shown = [point for point in points if (point[0].number in best) == (kind == label)]
        if shown:
            axes.scatter([x for _, x, _ in shown], [y for _, _, y in shown], color=colour, label=kind, zorder=3)
    halo = [withStroke(linewidth=2, foreground="white")]
    for one, x, y in points if len(points) <= MOST_NUMBERED else ():
        text = axes.annotate(str(one.number), (x, y), xytext=(5, 4), textcoords="offset points", fontsize=8, zorder=5)
        text.set_path_effects([*halo])
    axes.margins(0.08)


PICTURES: Mapping[str, Callable[[Trials], Figure]] = {
    "history": _history,
    "pareto_front": _front,
    "importance": _importance,
    "parallel_coordinates": _parallel,
    "slices": _slices,
    "intermediate": _intermediate,
    "time_against_score": _time,
}
"""Figures by the name of their file, in the order in which they are written."""
