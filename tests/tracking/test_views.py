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

from lorahydra.names import OBJECTIVE, State
from lorahydra.tracking import TrackedRun
from lorahydra.tracking.views import COLUMNS, VIEW_NAME, VIEW_TAG, view_url

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

    client.set_experiment_tag(run.experiment_id, VIEW_TAG, "mine")
    with start():
        pass
    assert client.get_experiment(run.experiment_id).tags[VIEW_TAG] == "mine"


@pytest.mark.slow
@pytest.mark.service
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
def test_trials_best_first_in_a_browser(start: StartRun, uri: str, tmp_path: Path, programs: ProgramRunner) -> None:
    from playwright.sync_api import sync_playwright

    for rank, score in enumerate((0.25, 0.75, 0.5)):
        with start(run_name=None) as run:
            run.params({"lora.r": 8 + rank})
            run.metrics({OBJECTIVE: score})
            run.finish(State.COMPLETE)
    server = Server(programs, tmp_path, database=uri)
    server.start()
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
            page = browser.new_page(viewport={"width": 1600, "height": 900})
            page.goto(view_url(server.uri, run.experiment_id))
            page.get_by_text("Exit shared view").wait_for()
            page.locator(".ag-header-cell", has_text=OBJECTIVE).first.wait_for()
            # ag-grid moves columns by their position on the page, not in the document.
            placed = "cells => cells.map(cell => [cell.getBoundingClientRect().x, cell.innerText.trim()])"
            headers = [name for _, name in sorted(page.locator(".ag-header-cell").evaluate_all(placed))]
            shown = [name.partition(".")[2].strip("`") for name in COLUMNS]
            assert [name for name in headers if name in shown][:2] == [OBJECTIVE, "lora.r"]
            cell = f"[col-id='metrics.`{OBJECTIVE}`'].ag-cell"
            page.locator(cell, has_text="0.75").wait_for()
            assert [text.strip() for text in page.locator(cell).all_inner_texts()] == ["0.75", "0.5", "0.25"]
            browser.close()
    finally:
        server.kill()
