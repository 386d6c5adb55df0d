"""MLflow's UI opens the saved view of an experiment, in a real browser."""

from __future__ import annotations

import base64
import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.mlflow_server import Server
from tests.support.programs import ProgramRunner

from lorahydra.config.schema import TrackingConfig
from lorahydra.names import OBJECTIVE, Kind, State, Tag
from lorahydra.tracking import TrackedRun, start_run
from lorahydra.tracking.views import COLUMNS, VIEW_NAME, VIEW_TAG, view_query, view_url

StartRun = Callable[..., TrackedRun]
CHROMIUM = shutil.which("chromium")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]


def test_an_experiment_gets_its_view_once(start: StartRun, client: Any) -> None:
    with start() as run:
        pass
    tags = client.get_experiment(run.experiment_id).tags
    assert tags["mlflow.experimentKind"] == "finetuning"
    saved = json.loads(tags[VIEW_TAG])
    assert saved["name"] == VIEW_NAME
    state = json.loads(zlib.decompress(base64.b64decode(saved["state"].removeprefix("deflate;"))))
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`eval/combined`", False)
    assert state["selectedColumns"] == list(COLUMNS)

    assert f"(#/experiments/{run.experiment_id}/runs?{view_query()})" in tags["mlflow.note.content"]

    client.set_experiment_tag(run.experiment_id, VIEW_TAG, "mine")
    with start():
        pass
    assert client.get_experiment(run.experiment_id).tags[VIEW_TAG] == "mine"


def record_study(uri: str, folder: Path, study: str, scores: dict[str, float | None]) -> str:
    """A study with a trial for each score, by the trial's name; the ones without a score are pruned. Its experiment."""
    config = TrackingConfig(uri=uri, system_metrics=False, tags={Tag.FINE_TUNE: f"{study}'s name"})
    tags = {Tag.STUDY: study}
    with start_run(config, output_dir=folder, kind=Kind.STUDY, run_name=study, tags=tags) as parent:
        for name, score in scores.items():
            options: Any = {"tags": tags, "parent_run_id": parent.run_id}
            with start_run(config, output_dir=folder, kind=Kind.TRIAL, run_name=name, **options) as run:
                run.params({"lora.r": 8})
                if score is not None:
                    run.metrics({OBJECTIVE: score})
                run.finish(State.PRUNED if score is None else State.COMPLETE)
    return parent.experiment_id


@pytest.mark.slow
@pytest.mark.service
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
def test_the_trials_of_a_study_in_a_browser(uri: str, tmp_path: Path, programs: ProgramRunner) -> None:
    from playwright.sync_api import sync_playwright

    record_study(uri, tmp_path, "another", {"not of this study": 0.9})
    scores = {"a": 0.25, "b": 0.75, "c": None, "d": 0.5}
    experiment = record_study(uri, tmp_path, "it's", scores)
    server = Server(programs, tmp_path, database=uri)
    server.start()
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
            page = browser.new_page(viewport={"width": 1600, "height": 900})
            page.goto(view_url(server.uri, experiment, "it's"))
            page.get_by_text("Exit shared view").wait_for()
            page.locator(".ag-header-cell", has_text=OBJECTIVE).first.wait_for()
            # ag-grid moves columns by their position on the page, not in the document.
            placed = "cells => cells.map(cell => [cell.getBoundingClientRect().x, cell.innerText.trim()])"
            headers = [name for _, name in sorted(page.locator(".ag-header-cell").evaluate_all(placed))]
            shown = [name.partition(".")[2].strip("`") for name in COLUMNS]
            assert [name for name in headers if name in shown][:3] == [OBJECTIVE, Tag.STATE, "lora.r"]
            cell = f"[col-id='metrics.`{OBJECTIVE}`'].ag-cell"
            page.locator(cell, has_text="0.75").wait_for()
            assert [text.strip() for text in page.locator(cell).all_inner_texts()] == ["0.75", "0.5", "0.25", "-"]
            state = page.locator(f"[col-id='tags.`{Tag.STATE}`'].ag-cell")
            assert [text.strip() for text in state.all_inner_texts()] == ["complete"] * 3 + ["pruned"]
            # The page of the experiment leads to the view of all trials.
            page.goto(f"{server.uri}/#/experiments/{experiment}")
            # MLflow may lay a hint over the page, so the link is not clicked.
            link = page.get_by_role("link", name=VIEW_NAME).first.get_attribute("href")
            opened = browser.new_page(viewport={"width": 1600, "height": 900})
            opened.goto(f"{server.uri}/{link}")
            opened.locator(cell, has_text="0.9").wait_for()
            browser.close()
    finally:
        server.kill()
