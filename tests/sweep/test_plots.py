"""Plots of a study as files."""

from __future__ import annotations

import logging
import math
import random
import re
import threading
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from lorahydra.errors import OutputError
from lorahydra.sweep import pictures as pictures_module
from lorahydra.sweep import plots
from lorahydra.sweep.plot_data import PlotData
from lorahydra.sweep.plots import PLOTS, write_plots

SPACE: Mapping[str, BaseDistribution] = {
    "training.learning_rate": FloatDistribution(1e-5, 1e-3, log=True),
    "lora.r": CategoricalDistribution([8, 4, 16]),
    "lora.bias": CategoricalDistribution(["none", "$all$", "<b>lora</b>", None]),
}
PARAMS = {"training.learning_rate": 1e-4, "lora.r": 8}
ALL = ["history", "importance", "parallel_coordinates", "slices", "intermediate", "time_against_score"]
FEW = {name: PLOTS[name] for name in ("history", "importance")}
"""For tests to which all plots are the same: each takes a tenth of a second."""
PNG = b"\x89PNG"


def trial(
    *values: float,
    state: TrialState = TrialState.COMPLETE,
    params: Mapping[str, Any] | None = None,
    losses: Mapping[int, float] | None = None,
    seconds: float | None = 10.0,
) -> FrozenTrial:
    chosen = dict(params or {})
    return create_trial(
        state=state,
        params=chosen,
        distributions={name: SPACE[name] for name in chosen},
        values=values or None,
        intermediate_values=dict(losses or {}),
        user_attrs={"lorahydra": {} if seconds is None else {"seconds": seconds}},
    )


def study(*trials: FrozenTrial, directions: tuple[str, ...] = ("maximize",)) -> optuna.Study:
    made = optuna.create_study(directions=directions)  # type: ignore[arg-type]
    made.add_trials(trials)
    return made


def some_params(chance: random.Random) -> dict[str, Any]:
    bias = SPACE["lora.bias"]
    assert isinstance(bias, CategoricalDistribution)
    return {
        "training.learning_rate": 10 ** chance.uniform(-5, -3),
        "lora.r": chance.choice([4, 8, 16]),
        "lora.bias": chance.choice(bias.choices),
    }


def sixteen(objectives: int = 1) -> list[FrozenTrial]:
    chance = random.Random(0)
    trials = []
    for index in range(16):
        params = some_params(chance)
        losses = {} if objectives > 1 else {step: 2 - step / 5 + chance.random() / 10 for step in range(4)}
        state = TrialState.FAIL if index == 5 else TrialState.PRUNED if index % 4 == 3 else TrialState.COMPLETE
        values = [chance.random() for _ in range(objectives)] if state is TrialState.COMPLETE else []
        trials.append(trial(*values, state=state, params=params, losses=losses, seconds=10 + index))
    return trials


def pictures(paths: list[Path]) -> list[str]:
    return [path.stem for path in paths if path.suffix == ".png"]


def sections(paths: list[Path]) -> list[str]:
    """Names of the plots on the page; none where there is no page."""
    pages = [path for path in paths if path.name == "plots.html"]
    return re.findall(r'<section id="(\w+)">', pages[0].read_text(encoding="utf-8")) if pages else []


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_plots(study(*sixteen()), tmp_path_factory.mktemp("plots") / "new" / "folder", ["combined"])


def test_every_plot_is_on_the_page_and_a_picture(written: list[Path]) -> None:
    assert sections(written) == pictures(written) == ALL
    assert sorted(written) == sorted(written[0].parent.iterdir())
    for path in written:
        assert path.suffix == ".html" or path.read_bytes().startswith(PNG)


def test_the_page_works_offline_and_holds_plotly_once(written: list[Path]) -> None:
    text = written[0].read_text(encoding="utf-8")
    assert text.count("Plotly.newPlot(") >= len(ALL)
    assert "<script src=" not in text
    assert 1_000_000 < len(text) < 8_000_000


def test_time_against_score_tells_trial_and_parameters(written: list[Path]) -> None:
    page = written[0].read_text(encoding="utf-8")
    data = page[page.index('<section id="time_against_score">') :]
    assert "trial 15" not in data
    assert "trial 14" in data
    assert "lora.r 16" in data
    assert "<b>lora" not in data


def test_losses_of_a_study_that_maximizes_are_shown_as_they_are() -> None:
    # Optuna's pruners read losses in the study's direction, so they are stored with the opposite sign.
    reported = trial(0.5, params=PARAMS, losses={1: -2.5, 2: -1.5})
    data = PlotData(study(reported, trial(0.6, params=PARAMS)), ["combined"])
    assert data.study.trials[0].intermediate_values == {1: 2.5, 2: 1.5}
    [axes] = pictures_module.intermediate(data).axes
    assert axes.lines[0].get_ydata().tolist() == [2.5, 1.5]  # type: ignore[union-attr]


def test_labels_of_parameters_are_short_and_do_not_overlap() -> None:
    narrow = [trial(0.5 + rate, params=PARAMS | {"training.learning_rate": rate}) for rate in (1e-4, 2e-4, 6e-4)]
    figure = pictures_module.slices(PlotData(study(*narrow), ["combined"]))
    figure.canvas.draw()
    rate = next(axes for axes in figure.axes if axes.get_xlabel() == "learning_rate")
    boxes = [label.get_window_extent() for label in rate.get_xticklabels() if label.get_text()]
    assert len(boxes) > 1
    assert all(left.x1 < right.x0 for left, right in pairwise(sorted(boxes, key=lambda box: box.x0)))


def test_several_objectives_have_a_front_and_no_history(tmp_path: Path) -> None:
    made = study(*sixteen(2), directions=("maximize", "minimize"))
    paths = write_plots(made, tmp_path, ["combined", "time"])
    front = ["pareto_front", "importance", "parallel_coordinates", "slices", "time_against_score"]
    assert sections(paths) == pictures(paths) == front


def test_three_objectives_have_a_front(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "PLOTS", {"pareto_front": PLOTS["pareto_front"]})
    made = study(*sixteen(3), directions=("maximize", "minimize", "minimize"))
    assert pictures(write_plots(made, tmp_path, ["combined", "time", "size"])) == ["pareto_front"]


@pytest.mark.parametrize(
    ("trials", "expected"),
    [
        pytest.param([], [], id="no trials"),
        pytest.param([trial(0.5, params=PARAMS)], [], id="one trial"),
        pytest.param([trial(state=TrialState.FAIL), trial(state=TrialState.WAITING)], [], id="none complete"),
        pytest.param([trial(0.5), trial(0.6)], ["history", "time_against_score"], id="no parameters"),
        pytest.param(
            [trial(0.5, params={"lora.r": 4}), trial(0.6, params={"lora.r": 8}, seconds=20)],
            ["history", "parallel_coordinates", "slices", "time_against_score"],
            id="one parameter",
        ),
        pytest.param(
            [trial(0.5, params=PARAMS), trial(0.5, params=PARAMS)],
            ["history", "parallel_coordinates", "slices", "time_against_score"],
            id="no variance",
        ),
        pytest.param(
            [trial(state=TrialState.PRUNED, losses={0: 1.0}), trial(state=TrialState.PRUNED, losses={0: math.nan})],
            ["intermediate"],
            id="only pruned",
        ),
        pytest.param(
            [trial(0.5, params={"lora.r": 4}), trial(0.7, params=PARAMS), trial(0.6, params={"lora.r": 16})],
            ["history", "importance", "parallel_coordinates", "slices", "time_against_score"],
            id="a parameter of some trials",
        ),
        pytest.param(
            [trial(math.inf, params=PARAMS), trial(0.5, params=PARAMS), trial(-math.inf, params=PARAMS)],
            [],
            id="infinite scores",
        ),
    ],
)
def test_what_cannot_be_drawn_is_left_out(trials: list[FrozenTrial], expected: list[str], tmp_path: Path) -> None:
    paths = write_plots(study(*trials), tmp_path / "plots", ["combined"])
    assert pictures(paths) == expected
    assert sections(paths) == expected


def test_a_plot_that_optuna_refuses_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("zero total variance")

    monkeypatch.setattr(optuna.importance, "get_param_importances", refuse)
    monkeypatch.setattr(optuna.visualization, "plot_param_importances", refuse)
    monkeypatch.setattr(plots, "PLOTS", FEW)
    with caplog.at_level(logging.DEBUG, "lorahydra"):
        paths = write_plots(study(*sixteen()), tmp_path, ["combined"])
    assert pictures(paths) == sections(paths) == ["history"]
    assert "importance.png left out: zero total variance" in caplog.text


def test_any_thread_may_draw_and_the_process_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "PLOTS", FEW)
    made = study(*sixteen()[:4])
    before = (matplotlib.get_backend(auto_select=False), matplotlib.rcParams.copy())
    level = logging.getLogger("optuna.visualization").level
    written: list[list[Path]] = []
    threads = [
        threading.Thread(target=lambda folder=tmp_path / name: written.append(write_plots(made, folder, ["combined"])))  # type: ignore[misc]
        for name in ("one", "two")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [pictures(paths) for paths in written] == [list(FEW)] * 2
    assert (matplotlib.get_backend(auto_select=False), matplotlib.rcParams.copy()) == before
    assert logging.getLogger("optuna.visualization").level == level


def test_optuna_says_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "PLOTS", FEW)
    made = study(*sixteen(), trial(math.inf, params=PARAMS))
    capfd.readouterr()
    write_plots(made, tmp_path, ["combined"])
    assert capfd.readouterr() == ("", "")


def test_a_place_that_is_taken_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "plots").write_text("")
    with pytest.raises(OutputError, match="a file exists where a folder is needed"):
        write_plots(study(*sixteen()), tmp_path / "plots", ["combined"])
