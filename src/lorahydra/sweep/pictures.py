"""A study's plots as matplotlib figures.

They are not drawn by `optuna.visualization.matplotlib`. It uses pyplot, which chooses a backend and a style for the
whole process, keeps figures open and may need a display or the main thread. Its labels overlap if a study has more than
a few parameters, and it draws the losses of a study that maximises below zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import optuna
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from lorahydra.names import State
from lorahydra.sweep.plot_data import PlotData
from lorahydra.sweep.ranking import pareto_front, ranked
from lorahydra.sweep.trial_record import TrialRecord

__all__ = ["history", "importance", "intermediate", "parallel_coordinates", "pareto", "slices", "time_against_score"]

BLUE, RED, GREY, YELLOW = "#4477aa", "#cc3311", "#aaaaaa", "#ddaa33"
MOST_NUMBERED = 40
"""With more points than this, their trial numbers would cover each other."""
PANELS_IN_A_ROW = 3
LINES: dict[State, tuple[str, dict[str, Any]]] = {
    State.COMPLETE: ("complete", {"color": BLUE, "linewidth": 1.2, "zorder": 3}),
    State.PRUNED: ("pruned", {"color": GREY, "linestyle": "--"}),
}
"""Name and style of a trial's losses."""


def _plain(text: str) -> str:
    # Matplotlib takes text between two dollar signs for a formula.
    return text.replace("$", r"\$")


def _figure(title: str, width: float = 7.5, height: float = 4.8) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title)
    return figure


def _panel(axes: Axes, x: str, y: str, *, whole: bool = False) -> Axes:
    """Name the axes; with `whole` the horizontal one has ticks at whole numbers only."""
    axes.set_xlabel(_plain(x))
    axes.set_ylabel(_plain(y))
    axes.grid(color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if whole:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return axes


def _legend(figure: Figure, axes: Axes) -> Figure:
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def history(data: PlotData) -> Figure:
    """The score of each trial, and the best one so far."""
    figure = _figure("Score of each trial")
    axes = _panel(figure.add_subplot(), "trial", data.objective, whole=True)
    numbers = [record.number for record in data.scored]
    best = list(accumulate(data.scores, max if data.directions[0] == "maximize" else min))
    axes.step(numbers, best, where="post", color=RED, label="best so far")
    axes.scatter(numbers, data.scores, color=BLUE, zorder=3, label="trial")
    return _legend(figure, axes)


def importance(data: PlotData) -> Figure:
    """How much of the difference in score each parameter explains."""
    shares = optuna.importance.get_param_importances(data.study, **data.target)
    names = sorted(shares, key=shares.__getitem__)
    figure = _figure("Importance of parameters", height=max(2.4, 1.4 + 0.42 * len(names)))
    axes = _panel(figure.add_subplot(), f"share of the difference in {data.objective}", "")
    bars = axes.barh([_plain(name) for name in names], [shares[name] for name in names], color=BLUE)
    axes.bar_label(bars, fmt="%.2f", padding=4)
    axes.margins(x=0.12)
    return figure


def parallel_coordinates(data: PlotData) -> Figure:
    """One upright axis per parameter, one line per trial in the colour of its score; the best trial is on top."""
    figure = _figure("Parameters and score", max(7.5, 1.6 * len(data.axes) + 3))
    axes = figure.add_subplot()
    columns = [data.score_axis, *data.axes]
    box: dict[str, Any] = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8}
    for x, axis in enumerate(columns):
        axes.axvline(x, color="#888888", linewidth=1, zorder=1)
        for place, text in axis.ticks.items():
            where: dict[str, Any] = {"textcoords": "offset points", "ha": "right", "va": "center", "zorder": 5}
            axes.annotate(_plain(text), (x, axis.height(place)), xytext=(-5, 0), fontsize=8, bbox=box, **where)
    low, high = min(data.scores), max(data.scores)
    # The brightest colour is hard to see on white, so the scale goes on above the highest score.
    scale = ScalarMappable(Normalize(low, high + (high - low) * 0.08), "viridis")
    figure.colorbar(scale, ax=axes, label=_plain(data.objective), pad=0.02)
    colours = scale.to_rgba(np.array(data.scores))
    lines = {record.number: index for index, record in enumerate(data.scored)}
    for record in reversed(ranked(data.scored, data.directions)):
        index = lines[record.number]
        heights = [axis.height(axis.places[index]) for axis in columns]
        width, opacity = (3.0, 1.0) if record is data.best else (1.4, _opacity(len(lines)))
        axes.plot(heights, color=colours[index], linewidth=width, alpha=opacity)
    labels = [axis.label if len(axis.label) <= 14 else _broken(axis.label) for axis in columns]
    axes.set_xticks(range(len(columns)), [_plain(label) for label in labels])
    axes.tick_params(axis="x", length=0, pad=10)
    axes.set_yticks([])
    axes.set_xlim(-0.35, len(columns) - 0.9)
    axes.spines[:].set_visible(False)
    return figure


def _broken(label: str) -> str:
    return label.replace("_", "_\n").replace(".", ".\n")


def _opacity(lines: int) -> float:
    """Of one line among many."""
    return max(0.2, min(0.75, 20 / lines))


def slices(data: PlotData) -> Figure:
    """One panel per parameter: its values against the score."""
    columns = min(PANELS_IN_A_ROW, len(data.axes))
    rows = math.ceil(len(data.axes) / columns)
    figure = _figure("Score by parameter", max(5.0, 3.4 * columns + 1), 3.2 * rows + 0.6)
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel().tolist()
    best = next(index for index, record in enumerate(data.scored) if record is data.best)
    for index, (axis, axes) in enumerate(zip(data.axes, panels, strict=False)):
        _panel(axes, axis.label, data.objective if index % columns == 0 else "")
        axes.scatter(axis.places, data.scores, color=BLUE)
        axes.scatter(axis.places[best], data.scores[best], color=RED)
        if axis.kind != "linear":
            # The labels of matplotlib's own logarithmic scale overlap if a range is shorter than a decade.
            texts = [_plain(text) for text in axis.ticks.values()]
            long = axis.kind == "choice" and sum(map(len, texts)) > 24
            axes.set_xticks(list(axis.ticks), texts, rotation=30 if long else 0)
        if axis.kind == "choice":
            axes.set_xlim(-0.5, len(axis.ticks) - 0.5)
    for axes in panels[len(data.axes) :]:
        axes.set_visible(False)
    return figure


def intermediate(data: PlotData) -> Figure:
    """Validation loss of every trial during training; pruned trials end with a cross."""
    figure = _figure("Validation loss during training")
    axes = _panel(figure.add_subplot(), "evaluation", "validation loss", whole=True)
    labelled = {""}
    for record in data.measured:
        points = sorted((step, loss) for step, loss in record.losses.items() if math.isfinite(loss))
        kind, style = LINES.get(record.state, ("not finished", {"color": YELLOW, "linestyle": ":"}))
        if data.best is not None and record.number == data.best.number:
            kind, style = f"best, trial {record.number}", {"color": RED, "linewidth": 2.5, "zorder": 4}
        elif record.state is State.COMPLETE:
            style = {**style, "alpha": _opacity(len(data.measured))}
        axes.plot(*zip(*points, strict=True), marker=".", label=None if kind in labelled else kind, **style)
        labelled.add(kind)
        if record.state is State.PRUNED:
            axes.plot(*points[-1], marker="x", color="#555555", zorder=5)
    return _legend(figure, axes)


def time_against_score(data: PlotData) -> Figure:
    """The time of each trial against its score."""
    figure = _figure("Time against score")
    axes = _panel(figure.add_subplot(), "wall time, s", data.objective)
    timed = [(record, record.seconds, score) for record, score in zip(data.scored, data.scores, strict=True)]
    points = [(record, seconds, score) for record, seconds, score in timed if seconds is not None]
    _scatter(axes, points, data, "best" if len(data.objectives) == 1 else "Pareto front")
    return _legend(figure, axes)


def pareto(data: PlotData) -> Figure:
    """The first objective against the second and, beside it, against the third."""
    figure = _figure("Pareto front", 7.5 if len(data.objectives) == 2 else 11.5)
    for column, name in enumerate(data.objectives[1:], start=1):
        axes = _panel(figure.add_subplot(1, len(data.objectives) - 1, column), data.objective, name)
        points = [(record, record.values[0], record.values[column]) for record in data.scored if record.values]
        _scatter(axes, points, data, "Pareto front")
    return _legend(figure, axes)


def _scatter(axes: Axes, points: Sequence[tuple[TrialRecord, float, float]], data: PlotData, label: str) -> None:
    """Draw trials as points, with their numbers if there is room; `label` names the best ones."""
    best = {record.number for record in pareto_front(data.scored, data.directions)}
    for kind, colour in ((label, RED), ("trial", BLUE)):
        shown = [(x, y) for record, x, y in points if (record.number in best) == (kind == label)]
        if shown:
            axes.scatter(*zip(*shown, strict=True), color=colour, label=kind, zorder=3)
    for record, x, y in points if len(points) <= MOST_NUMBERED else ():
        text = axes.annotate(
            str(record.number), (x, y), xytext=(5, 4), textcoords="offset points", fontsize=8, zorder=5
        )
        text.set_path_effects([withStroke(linewidth=2, foreground="white")])
    axes.margins(0.08)
