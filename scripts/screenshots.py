"""Pictures of MLflow's UI on a study, for docs/images: what a user of lorahydra sees there.

python train.py -m experiment=demo hydra.sweeper.n_trials=4
python scripts/screenshots.py [--store sqlite:///mlflow.db] [--out docs/images]

Needs a Chromium on this machine and `pip install -e '.[dev]'`, which brings playwright without a browser of its own.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from playwright.sync_api import Browser, Page, Playwright, sync_playwright

from lorahydra.names import OBJECTIVE, PREDICTIONS_FILE, Kind, Tag
from lorahydra.tracking.views import view_url

QUIET = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
"""Without these Chromium asks hosts of its maker at every start."""
SECONDS = 60


def main() -> None:
    """Take all pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", default="sqlite:///mlflow.db")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    study, trials = newest_study(MlflowClient(options.store))
    with server(options.store) as address, sync_playwright() as playwright:
        browser = launch(playwright)
        page = browser.new_page(viewport={"width": 1440, "height": 1050})
        close_assistant(page, address)
        for name, picture in PICTURES.items():
            picture(page, address, study, trials)
            page.screenshot(path=options.out / f"{name}.png")
            print(options.out / f"{name}.png")
        browser.close()


def launch(playwright: Playwright) -> Browser:
    """The Chromium of this machine."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("screenshots: there is no chromium on PATH")
    return playwright.chromium.launch(executable_path=chromium, args=list(QUIET))


def newest_study(client: MlflowClient) -> tuple[Any, list[Any]]:
    """The newest study that has a winner, and its trials, best first."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    studies = client.search_runs(
        experiments, f"tags.`{Tag.KIND}` = '{Kind.STUDY}'", order_by=["attributes.start_time DESC"]
    )
    for study in studies:
        if study.data.tags.get(Tag.BEST_RUN):
            inside = f"tags.`mlflow.parentRunId` = '{study.info.run_id}'"
            return study, list(client.search_runs(experiments, inside, order_by=[f"metrics.`{OBJECTIVE}` DESC"]))
    sys.exit("screenshots: no study in this store has ended")


@contextmanager
def server(store: str) -> Iterator[str]:
    """MLflow's UI on a free port; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port)]
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [*command, "--workers", "1", "--backend-store-uri", store], stdout=log, stderr=log, env=environment
        )
        try:
            address = f"http://127.0.0.1:{port}"
            wait_for(f"{address}/health")
            yield address
        finally:
            process.terminate()
            process.wait()


def wait_for(address: str) -> None:
    """Wait until a server answers."""
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            if time.monotonic() > deadline:
                sys.exit("screenshots: MLflow's UI does not start")
            time.sleep(0.3)


def close_assistant(page: Page, address: str) -> None:
    """MLflow opens the panel of its assistant for whoever comes the first time."""
    page.goto(address)
    panel = page.get_by_text("Ask questions about your experiments")
    panel.wait_for(timeout=SECONDS * 1000)
    page.get_by_role("button", name="Close").last.click()
    panel.wait_for(state="detached")


def trials_table(page: Page, address: str, study: Any, trials: list[Any]) -> None:
    """The saved view: trials, best first."""
    page.goto(view_url(address, study.info.experiment_id))
    page.get_by_text(trials[0].info.run_name).first.wait_for()
    page.get_by_text("Exit shared view").wait_for()
    settle(page)


def study_page(page: Page, address: str, study: Any, trials: list[Any]) -> None:
    """The study's run with its leaderboard."""
    page.goto(f"{address}/#/experiments/{study.info.experiment_id}/runs/{study.info.run_id}")
    page.get_by_text("Show more").first.click()
    page.get_by_text("trials finished").first.wait_for()
    settle(page)


def comparison(page: Page, address: str, study: Any, trials: list[Any]) -> None:
    """The best and the worst trial side by side."""
    ids = [trials[0].info.run_id, trials[-1].info.run_id]
    quoted = "%5B" + ",".join(f"%22{run_id}%22" for run_id in ids) + "%5D"
    page.goto(f"{address}/#/compare-runs?runs={quoted}&experiments=%5B%22{study.info.experiment_id}%22%5D")
    page.get_by_text("Visualizations").click()
    page.get_by_text("Show diff only").first.click()
    settle(page)


def charts(page: Page, address: str, study: Any, trials: list[Any]) -> None:
    """Curves of all trials over each other."""
    page.goto(f"{view_url(address, study.info.experiment_id)}&compareRunsMode=CHART")
    page.get_by_text("eval/loss").first.wait_for()
    settle(page)


def predictions(page: Page, address: str, study: Any, trials: list[Any]) -> None:
    """Answers of the best trial beside the references and the untuned model's."""
    run = f"{address}/#/experiments/{study.info.experiment_id}/runs/{trials[0].info.run_id}"
    page.goto(f"{run}/artifacts/{PREDICTIONS_FILE}")
    page.get_by_text("baseline_prediction").first.wait_for()
    settle(page)


def answers(page: Page, address: str, study: Any, trials: list[Any]) -> None:
    """Answers of several trials to the same prompts."""
    page.goto(f"{view_url(address, study.info.experiment_id)}&compareRunsMode=ARTIFACT")
    page.get_by_text("Compare:").click()
    page.get_by_role("option", name="prediction", exact=True).first.click()
    settle(page)


def model_version(page: Page, address: str, study: Any, trials: list[Any]) -> None:
    """The registered winner."""
    page.goto(f"{address}/#/models/lorahydra-{study.data.tags[Tag.STUDY]}/versions/1")
    page.get_by_text("LoRA adapter of").first.wait_for()
    settle(page)


def settle(page: Page) -> None:
    """Let charts and tables be drawn: nothing in the page says when they are."""
    page.wait_for_timeout(3000)


PICTURES = {
    "mlflow-trials": trials_table,
    "mlflow-study": study_page,
    "mlflow-compare": comparison,
    "mlflow-charts": charts,
    "mlflow-predictions": predictions,
    "mlflow-answers": answers,
    "mlflow-model": model_version,
}


if __name__ == "__main__":
    main()
