"""Whether everything says the same of who won a study, and whether that is another trial than the first one led by."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import httpx
from mlflow import MlflowClient


def winners(api: httpx.Client, number: int, folder: Path) -> dict[str, Any]:
    """The number of the winning trial, by the place that says so.

    Args:
        api: Client of the API.
        number: The fine-tune.
        folder: The server's.
    """
    job = api.get(f"/fine-tunes/{number}").json()
    rows = api.get(f"/fine-tunes/{number}/leaderboard").json()
    table = list(csv.DictReader(io.StringIO(api.get(f"/fine-tunes/{number}/leaderboard.csv").text)))
    page = api.get(api.base_url.copy_with(raw_path=f"/fine-tunes/{number}".encode()), headers={"Accept": "text/html"})
    board = re.findall(r'<tr id="trial-(\d+)" class="best">', page.text)
    store: Any = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    best = folder / "jobs" / str(number) / "outputs" / job["study"] / "best"
    version = store.get_model_version_by_alias(f"lorahydra-{job['study']}", "champion")
    experiment = store.get_experiment_by_name("lorahydra").experiment_id
    [study] = store.search_runs(
        [experiment], f"tags.`lorahydra.study` = '{job['study']}' and tags.`lorahydra.kind` = 'study'"
    )

    def trial_of(run: str) -> int:
        return int(store.get_run(run).data.tags["lorahydra.trial_number"])

    note = study.data.tags["mlflow.note.content"]
    log = api.get(f"/fine-tunes/{number}/log").json()["text"]
    return {
        "the API": job["best_trial"],
        "the API's choice": job["choice"]["winner"] if job["choice"] else job["best_trial"],
        "the leaderboard": next(row["number"] for row in rows if row["is_winner"]),
        "the first row": rows[0]["number"],
        "the CSV": next(int(row["number"]) for row in table if row["is_winner"] == "True"),
        "the first row of the CSV": int(table[0]["number"]),
        "the page": int(board[0]),
        "the page's result": int(re.findall(r"<dt>[^<]*?(\d+)[^<]*</dt><dd>", page.text.partition('id="result"')[2])[0])
        - 1,  # people count from 1
        "the run that is tagged best": trial_of(study.data.tags["lorahydra.best_run"]),
        "the trial that is tagged best": int(study.data.tags["lorahydra.best_trial"]),
        "the champion": trial_of(version.run_id),
        "the first row of the description": int(re.findall(r"\[\*?(\d+)\]\(#/experiments", note)[0]),
        "best/": trial_of(json.loads((best / "lorahydra.json").read_text())["run_id"]),
        "the log": int(re.findall(r"Best: trial (\d+),", log)[-1]),
    }


def first_leader(api: httpx.Client, number: int) -> int:
    """The trial with the best score before the finalists were judged on all examples."""
    rows = api.get(f"/fine-tunes/{number}/leaderboard").json()
    scored = [row for row in rows if row["combined"] is not None]
    return int(max(scored, key=lambda row: row["combined"])["number"])
