"""Plots of a study as files: all on one page that works offline (HTML), and each as a picture (PNG).

    write_plots(study, Path("out/plots"), ["combined"])

The page is drawn by `optuna.visualization`, pictures by `pictures.py`. It is one page because plotly itself has 5 MB.
"""

from __future__ import annotations

import html
import logging
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from matplotlib.figure import Figure
from optuna import visualization
from plotly import graph_objects

from lorahydra.sweep import pictures
from lorahydra.sweep.labels import number, value_text
from lorahydra.sweep.plot_data import PlotData
from lorahydra.utils.files import atomic_file, writing

__all__ = ["write_plots"]

logger = logging.getLogger(__name__)

UNDRAWABLE = (ValueError, RuntimeError, ZeroDivisionError)
"""Errors that Optuna and the plotting libraries raise if a study has too little to show."""
ONE_AT_A_TIME = threading.Lock()
PAGE = "plots.html"
HEAD = '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title></head><body>'


class _Plot(NamedTuple):
    """One plot in its two forms."""

    fits: Callable[[PlotData], bool]
    """Whether a study has enough data for it."""
    picture: Callable[[PlotData], Figure]
    section: Callable[[PlotData], Any]
    """Its form on the page."""


def write_plots(study: optuna.Study, folder: Path, objectives: Sequence[str], winner: int | None = None) -> list[Path]:
    """Write the plots of a study; plots for which it has too little data are left out.

    The page is `plots.html`; the plots are those of `PLOTS`, `history` with one objective and `pareto_front` with
    several. With several objectives all but the front show the first one.

    May be called from any thread; calls wait for each other.

    Args:
        study: The study, with or without running trials.
        folder: Where the files go; files of the same name are replaced.
        objectives: Names of the objectives, in the order of the study's directions.
        winner: Number of the trial to mark; None marks the one with the best first objective.

    Returns:
        The files that were written.

    Raises:
        OutputError: The folder cannot be written to.
    """
    optuna.logging.disable_default_handler()  # it prints to stderr, beside the log
    with ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = PlotData(study, objectives, winner)
        plots = {name: plot for name, plot in PLOTS.items() if plot.fits(data)}
        page = _write_page(plots, data, folder / PAGE)
        return page + [path for name in plots for path in _write_picture(plots[name], data, folder / f"{name}.png")]


def _write_page(plots: dict[str, _Plot], data: PlotData, path: Path) -> list[Path]:
    sections: list[str] = []
    for name, plot in plots.items():
        try:
            figure = plot.section(data)
            figure.update_layout(title=name.replace("_", " ").capitalize())
            drawn = figure.to_html(include_plotlyjs=not sections, full_html=False)
        except UNDRAWABLE as error:
            logger.debug("Plot %s left out of the page: %s", name, error)
            continue
        sections.append(f'<section id="{name}">{drawn}</section>')
    if not sections:
        return []
    head = HEAD.format(title=html.escape(data.name))
    with atomic_file(path) as temporary, writing(path):
        temporary.write_text("\n".join([head, *sections, "</body></html>\n"]), encoding="utf-8")
    return [path]


def _write_picture(plot: _Plot, data: PlotData, path: Path) -> list[Path]:
    try:
        figure = plot.picture(data)
        with atomic_file(path) as temporary:
            figure.savefig(temporary, format="png", dpi=150)
    except UNDRAWABLE as error:
        logger.debug("Plot %s left out: %s", path.name, error)
        return []
    return [path]


def _by_optuna(name: str) -> Callable[[PlotData], Any]:
    """The plot of that name of `optuna.visualization`, for the first objective."""
    return lambda data: getattr(visualization, name)(data.study, target_name=data.objective, **data.target)


def _losses(data: PlotData) -> Any:
    figure = visualization.plot_intermediate_values(data.study)
    return figure.update_layout(xaxis_title="evaluation", yaxis_title="validation loss")


def _times(data: PlotData) -> Any:
    points = graph_objects.Scatter(
        x=[record.seconds for record in data.scored],
        y=data.scores,
        mode="markers",
        marker={"size": 10},
        hovertext=_hover(data),
        hoverinfo="text",
    )
    layout = {"xaxis_title": "wall time, s", "yaxis_title": html.escape(data.objective)}
    return graph_objects.Figure(points, layout=layout)


def _hover(data: PlotData) -> list[str]:
    texts = []
    for record, score in zip(data.scored, data.scores, strict=True):
        lines = [f"trial {record.number}", f"{data.objective} {number(score)}", f"time {record.seconds or 0:.1f} s"]
        lines += [f"{name} {value_text(value)}" for name, value in record.params.items()]
        # Plotly reads some tags in texts.
        texts.append("<br>".join(html.escape(line) for line in lines))
    return texts


PLOTS = {
    "history": _Plot(
        lambda data: len(data.scored) > 1 and len(data.objectives) == 1,
        pictures.history,
        _by_optuna("plot_optimization_history"),
    ),
    "pareto_front": _Plot(
        lambda data: len(data.scored) > 1 and len(data.objectives) in (2, 3),
        pictures.pareto,
        lambda data: visualization.plot_pareto_front(data.study, target_names=list(data.objectives)),
    ),
    "importance": _Plot(
        lambda data: len(data.axes) > 1 and len(set(data.scores)) > 1,
        pictures.importance,
        _by_optuna("plot_param_importances"),
    ),
    "parallel_coordinates": _Plot(
        lambda data: len(data.scored) > 1 and bool(data.axes),
        pictures.parallel_coordinates,
        _by_optuna("plot_parallel_coordinate"),
    ),
    "slices": _Plot(lambda data: len(data.scored) > 1 and bool(data.axes), pictures.slices, _by_optuna("plot_slice")),
    "intermediate": _Plot(lambda data: bool(data.measured), pictures.intermediate, _losses),
    "time_against_score": _Plot(
        lambda data: sum(record.seconds is not None for record in data.scored) > 1, pictures.time_against_score, _times
    ),
}
"""By name of the file and of the section on the page, in the order in which they are written."""
