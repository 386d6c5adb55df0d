"""Plots of a study as files: all on one page that works offline (HTML), and each as a picture (PNG).

    write_plots(study, Path("out/plots"), ["combined"])

The page is drawn by `optuna.visualization`, pictures by `pictures.py`. It is one page because plotly itself has 5 MB.
"""

from __future__ import annotations

import html
import logging
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from lorahydra.sweep.labels import number, value_text
from lorahydra.sweep.pictures import PICTURES, Trials, read_trials
from lorahydra.sweep.trial_record import TrialRecord
from lorahydra.utils.files import atomic_file, writing

__all__ = ["write_plots"]

logger = logging.getLogger(__name__)

UNDRAWABLE = (ValueError, RuntimeError, ZeroDivisionError)
"""What Optuna and the plotting libraries raise where a study has too little to show."""
ONE_AT_A_TIME = threading.Lock()
PAGE = "plots.html"
HEAD = '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title></head><body>'


@dataclass(frozen=True)
class _Source:
    """The study in the two forms that plots are drawn from."""

    study: optuna.Study
    trials: Trials
    objectives: Sequence[str]

    @property
    def target(self) -> dict[str, Any]:
        """What to plot, as Optuna's keyword arguments."""
        # Without a function Optuna knows the direction, and shows the best so far in the history.
        if len(self.objectives) == 1:
            return {"target_name": self.objectives[0]}
        return {"target_name": self.objectives[0], "target": _first_value}


def write_plots(study: optuna.Study, folder: Path, objectives: Sequence[str]) -> list[Path]:
    """Write the plots of a study; those that it has too little for are left out.

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
        source = _Source(study, read_trials(study, objectives), objectives)
        names = [name for name in PICTURES if _fits(name, source)]
        drawn = (_page(names, source, folder), *(_picture(name, source, folder) for name in names))
        return [path for path in drawn if path is not None]


def _fits(name: str, source: _Source) -> bool:
    """Whether the study has what a plot shows."""
    trials = source.trials
    several = len(source.objectives) > 1
    enough = len(trials.scored) > 1
    drawable = {
        "history": enough and not several,
        "pareto_front": enough and len(source.objectives) in (2, 3),
        "importance": enough and len(trials.axes) > 1 and len({trials.score(one) for one in trials.scored}) > 1,
        "parallel_coordinates": enough and len(trials.axes) > 0,
        "slices": enough and len(trials.axes) > 0,
        "intermediate": len(trials.measured) > 0,
        "time_against_score": len(trials.timed) > 1,
    }[name]
    if not drawable and name != ("history" if several else "pareto_front"):
        logger.debug("Plot %s left out: the study has too little for it", name)
    return drawable


def _page(names: Sequence[str], source: _Source, folder: Path) -> Path | None:
    sections: list[str] = []
    for name in names:
        try:
            figure = PAGES[name](source)
            figure.update_layout(title=name.replace("_", " ").capitalize())
            plot = figure.to_html(include_plotlyjs=not sections, full_html=False)
        except UNDRAWABLE as error:
            logger.debug("Plot %s left out of the page: %s", name, error)
            continue
        sections.append(f'<section id="{name}">{plot}</section>')
    if not sections:
        return None
    title = html.escape(source.study.study_name)
    path = folder / PAGE
    with atomic_file(path) as temporary, writing(path):
        temporary.write_text("\n".join([HEAD.format(title=title), *sections, "</body></html>\n"]), encoding="utf-8")
    return path


def _picture(name: str, source: _Source, folder: Path) -> Path | None:
    path = folder / f"{name}.png"
    try:
        figure = PICTURES[name](source.trials)
        with atomic_file(path) as temporary:
            figure.savefig(temporary, format="png", dpi=150)
    except UNDRAWABLE as error:
        logger.debug("Plot %s.png left out: %s", name, error)
        return None
    return path


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    """Keep from the user what Optuna says about drawing; its words on trials that run meanwhile still pass."""
    loggers = [logging.getLogger(name) for name in ("optuna.visualization", "optuna.importance")]
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


def _first_value(trial: FrozenTrial) -> float:
    return float(trial.values[0])


def _history_page(source: _Source) -> Any:
    from optuna.visualization import plot_optimization_history

    return plot_optimization_history(source.study, **source.target)


def _front_page(source: _Source) -> Any:
    from optuna.visualization import plot_pareto_front

    return plot_pareto_front(source.study, target_names=list(source.objectives))


def _importance_page(source: _Source) -> Any:
    from optuna.visualization import plot_param_importances

    return plot_param_importances(source.study, **source.target)


def _parallel_page(source: _Source) -> Any:
    from optuna.visualization import plot_parallel_coordinate

    return plot_parallel_coordinate(source.study, **source.target)


def _slices_page(source: _Source) -> Any:
    from optuna.visualization import plot_slice

    return plot_slice(source.study, **source.target)


def _intermediate_page(source: _Source) -> Any:
    from optuna.visualization import plot_intermediate_values

    figure = plot_intermediate_values(source.study)
    return figure.update_layout(xaxis_title="evaluation", yaxis_title="validation loss")


def _time_page(source: _Source) -> Any:
    from plotly import graph_objects

    trials = source.trials
    points = graph_objects.Scatter(
        x=[one.seconds for one in trials.timed],
        y=[trials.score(one) for one in trials.timed],
        mode="markers",
        marker={"size": 10},
        hovertext=[_hover(one, trials) for one in trials.timed],
        hoverinfo="text",
    )
    layout = {"xaxis_title": "wall time, s", "yaxis_title": html.escape(trials.objective)}
    return graph_objects.Figure(points, layout=layout)


def _hover(record: TrialRecord, trials: Trials) -> str:
    lines = [f"trial {record.number}", f"{trials.objective} {number(trials.score(record))}"]
    lines += [f"time {record.seconds:.1f} s"]
    lines += [f"{name} {value_text(value)}" for name, value in record.params.items()]
    # Plotly reads some tags in texts.
    return "<br>".join(html.escape(line) for line in lines)


PAGES: Mapping[str, Callable[[_Source], Any]] = {
    "history": _history_page,
    "pareto_front": _front_page,
    "importance": _importance_page,
    "parallel_coordinates": _parallel_page,
    "slices": _slices_page,
    "intermediate": _intermediate_page,
    "time_against_score": _time_page,
}
