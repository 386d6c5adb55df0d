"""Plots of a study as files: all on one page that works offline (HTML), and each as a picture (PNG).

    write_plots(study, Path("out/plots"), ["combined"])

The page is drawn by `optuna.visualization`, pictures by `pictures.py`. It is one page because plotly itself has 5 MB.
"""

from __future__ import annotations

import html
import logging
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from matplotlib.figure import Figure
from optuna import visualization
from plotly import graph_objects

from lorahydra.sweep import pictures
from lorahydra.sweep.labels import number, value_text
from lorahydra.sweep.plot_data import PlotData
from lorahydra.sweep.trial_record import TrialRecord
from lorahydra.utils.files import atomic_file, writing

__all__ = ["write_plots"]

logger = logging.getLogger(__name__)

UNDRAWABLE = (ValueError, RuntimeError, ZeroDivisionError)
"""Errors that Optuna and the plotting libraries raise if a study has too little to show."""
ONE_AT_A_TIME = threading.Lock()
PAGE = "plots.html"
HEAD = '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title></head><body>'


@dataclass(frozen=True)
class _Plot:
    """One plot in its two forms."""

    name: str
    """Name of its file and of its section on the page."""
    fits: Callable[[PlotData], bool]
    """Whether a study has enough data for it."""
    picture: Callable[[PlotData], Figure]
    section: Callable[[PlotData], Any]


def write_plots(study: optuna.Study, folder: Path, objectives: Sequence[str]) -> list[Path]:
    """Write the plots of a study; plots for which it has too little data are left out.

    The page is `plots.html`; the plots are `history` (with several objectives `pareto_front`), `importance`,
    `parallel_coordinates`, `slices`, `intermediate` and `time_against_score`. With several objectives all but the front
    show the first one.

    May be called from any thread; calls wait for each other.

    Args:
        study: The study, with or without running trials.
        folder: Where the files go; files of the same name are replaced.
        objectives: Names of the objectives, in the order of the study's directions.

    Returns:
        The files that were written.

    Raises:
        OutputError: The folder cannot be written to.
    """
    with ONE_AT_A_TIME, _quiet_optuna():
        data = PlotData(study, objectives)
        plots = [plot for plot in PLOTS if plot.fits(data)]
        written = (_write_page(plots, data, folder), *(_write_picture(plot, data, folder) for plot in plots))
        return [path for path in written if path is not None]


def _write_page(plots: Sequence[_Plot], data: PlotData, folder: Path) -> Path | None:
    sections: list[str] = []
    for plot in plots:
        try:
            figure = plot.section(data)
            figure.update_layout(title=plot.name.replace("_", " ").capitalize())
            drawn = figure.to_html(include_plotlyjs=not sections, full_html=False)
        except UNDRAWABLE as error:
            logger.debug("Plot %s left out of the page: %s", plot.name, error)
            continue
        sections.append(f'<section id="{plot.name}">{drawn}</section>')
    if not sections:
        return None
    path = folder / PAGE
    head = HEAD.format(title=html.escape(data.name))
    with atomic_file(path) as temporary, writing(path):
        temporary.write_text("\n".join([head, *sections, "</body></html>\n"]), encoding="utf-8")
    return path


def _write_picture(plot: _Plot, data: PlotData, folder: Path) -> Path | None:
    path = folder / f"{plot.name}.png"
    try:
        figure = plot.picture(data)
        with atomic_file(path) as temporary:
            figure.savefig(temporary, format="png", dpi=150)
    except UNDRAWABLE as error:
        logger.debug("Plot %s.png left out: %s", plot.name, error)
        return None
    return path


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    """Hide Optuna's log lines about drawing, but not those about trials that run at the same time."""
    names = ("optuna.visualization", "optuna.importance", "optuna.storages._in_memory")
    loggers = [logging.getLogger(name) for name in names]
    levels = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)


def _by_optuna(name: str) -> Callable[[PlotData], Any]:
    """The plot of that name of `optuna.visualization`, for the first objective."""

    def draw(data: PlotData) -> Any:
        target: dict[str, Any] = {"target_name": data.objective}
        if len(data.objectives) > 1:
            # Without a function Optuna knows the direction, and shows the best so far in the history.
            target["target"] = lambda trial: float(trial.values[0])
        return getattr(visualization, name)(data.study, **target)

    return draw


def _intermediate_section(data: PlotData) -> Any:
    figure = visualization.plot_intermediate_values(data.study)
    return figure.update_layout(xaxis_title="evaluation", yaxis_title="validation loss")


def _time_section(data: PlotData) -> Any:
    points = graph_objects.Scatter(
        x=[record.seconds for record in data.timed],
        y=[data.score(record) for record in data.timed],
        mode="markers",
        marker={"size": 10},
        hovertext=[_hover(record, data) for record in data.timed],
        hoverinfo="text",
    )
    layout = {"xaxis_title": "wall time, s", "yaxis_title": html.escape(data.objective)}
    return graph_objects.Figure(points, layout=layout)


def _hover(record: TrialRecord, data: PlotData) -> str:
    lines = [f"trial {record.number}", f"{data.objective} {number(data.score(record))}", f"time {record.seconds:.1f} s"]
    lines += [f"{name} {value_text(value)}" for name, value in record.params.items()]
    # Plotly reads some tags in texts.
    return "<br>".join(html.escape(line) for line in lines)


def _several(data: PlotData) -> bool:
    return len(data.scored) > 1


def _has_parameters(data: PlotData) -> bool:
    return _several(data) and bool(data.axes)


def _varies(data: PlotData) -> bool:
    return len(data.axes) > 1 and len({data.score(record) for record in data.scored}) > 1


PLOTS = (
    _Plot(
        "history",
        lambda data: _several(data) and len(data.objectives) == 1,
        pictures.history,
        _by_optuna("plot_optimization_history"),
    ),
    _Plot(
        "pareto_front",
        lambda data: _several(data) and len(data.objectives) in (2, 3),
        pictures.pareto,
        lambda data: visualization.plot_pareto_front(data.study, target_names=list(data.objectives)),
    ),
    _Plot("importance", _varies, pictures.importance, _by_optuna("plot_param_importances")),
    _Plot(
        "parallel_coordinates", _has_parameters, pictures.parallel_coordinates, _by_optuna("plot_parallel_coordinate")
    ),
    _Plot("slices", _has_parameters, pictures.slices, _by_optuna("plot_slice")),
    _Plot("intermediate", lambda data: bool(data.measured), pictures.intermediate, _intermediate_section),
    _Plot("time_against_score", lambda data: len(data.timed) > 1, pictures.time_against_score, _time_section),
)
"""In the order in which they are written."""
