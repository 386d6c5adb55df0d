"""A server with fine-tunes in every state: what the other checks of the service look at.

python benchmarks/states.py --port 8000

Serves from an empty folder until Ctrl-C. The base model is a tiny random one and the judge answers on loopback, so all
fine-tunes take two or three minutes, of which one has no judge, one has, one fails, one is cancelled, one runs and one
waits. The dataset and all names are Russian.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from server import SECONDS, served, wait

TINY = "tiny"
QUICK = (
    *("evaluation=minilm", "evaluation.max_new_tokens=8", "training.max_steps=2", "model.device=cpu"),
    *("tracking.system_metrics=false", "hydra/sweeper/pruner=none"),
)
UNJUDGED = {"use_llm_judge": False, "base_model_name": TINY, "n_trials": 5}
JUDGED = {"use_llm_judge": True, "judge_model_id": "gemini", "base_model_name": TINY, "n_trials": 5}


@dataclass
class States:
    """The server: its port, process and folder, a client of its API, and ids of its fine-tunes by their state."""

    port: int
    pid: int
    folder: Path
    api: httpx.Client
    project: int = 0
    dataset: int = 0
    jobs: dict[str, int] = field(default_factory=dict)

    def start(self, params: Mapping[str, Any], name: str) -> int:
        """Queue a fine-tune; returns its id."""
        body = {"project_id": self.project, "fine_tuning_params": params, "dataset_id": self.dataset, "name": name}
        answer = self.api.post("/fine-tunes", json=body)
        answer.raise_for_status()
        return int(answer.json()["id"])

    def job(self, number: int) -> dict[str, Any]:
        """A fine-tune as it is now."""
        job: dict[str, Any] = self.api.get(f"/fine-tunes/{number}").json()
        return job

    def wait_for(self, number: int, *states: str) -> None:
        """Until a fine-tune is in one of these states."""
        wait(lambda: self.job(number)["state"] in states)


@contextmanager
def serving(root: Path, *options: str, port: int | None = None, **variables: str) -> Iterator[States]:
    """A server without anything in it, with the tiny model and a judge."""
    from tests.conftest import make_tiny_model
    from tests.judges.wire import KEY, MODEL, judge_server

    if not (root / "models" / TINY).exists():
        make_tiny_model(root / "models" / TINY)
    with judge_server() as judge:
        judged = (f"judges.gemini.base_url={judge.gemini}", f"judges.gemini.model={MODEL}", "judge.n_examples=2")
        overrides = (*QUICK, *judged, "model=local", f"model.name_or_path={root / 'models' / TINY}")
        words = [word for override in overrides for word in ("--set", override)]
        environment = {"GEMINI_API_KEY": KEY, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **variables}
        folder, log = root / "served", root / "serve.txt"
        more = (*words, "--models", str(root / "models"), *options)
        with (
            served(folder, log, environment, more, port) as (port, pid),
            httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=SECONDS, trust_env=False) as api,
        ):
            if token := variables.get("LORAHYDRA_API_TOKEN"):
                api.headers["Authorization"] = f"Bearer {token}"
            yield States(port, pid, folder, api)


def russian_rows(count: int = 60) -> bytes:
    """A dataset as JSONL."""
    rows = ({"question": f"Сколько будет {n} и {n}?", "answer": f"Получится {2 * n}."} for n in range(count))
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()


def fill_project(states: States) -> None:
    """A project with a dataset."""
    states.project = states.api.post("/projects", json={"name": "Поддержка"}).json()["id"]
    sent = states.api.post(f"/projects/{states.project}/datasets", files={"file": ("вопросы.jsonl", russian_rows())})
    sent.raise_for_status()
    states.dataset = sent.json()["id"]


def fill_ended(states: States) -> None:
    """The same, with fine-tunes that have ended, in each of the ways."""
    fill_project(states)
    jobs = states.jobs
    for state, params, name in (
        ("complete", UNJUDGED, "Без судьи"),
        ("judged", JUDGED, "С судьёй"),
        ("failed", {**UNJUDGED, "base_model_name": "nobody/nothing"}, "Нет модели"),
        ("cancelled", {**UNJUDGED, "n_trials": 100}, "Отменённая"),
    ):
        jobs[state] = states.start(params, name)
    states.wait_for(jobs["complete"], "complete")
    states.wait_for(jobs["judged"], "complete")
    states.wait_for(jobs["failed"], "failed")
    wait(lambda: states.job(jobs["cancelled"])["trials_finished"] > 0)
    states.api.post(f"/fine-tunes/{jobs['cancelled']}/cancel").raise_for_status()
    states.wait_for(jobs["cancelled"], "cancelled")


def fill(states: States) -> None:
    """The same, and one that runs and one that waits."""
    fill_ended(states)
    states.jobs["running"] = states.start({**JUDGED, "n_trials": 100}, "Идёт")
    states.jobs["queued"] = states.start(UNJUDGED, "Ждёт")
    wait(lambda: states.job(states.jobs["running"])["trials_finished"] > 0)


def main(words: Sequence[str] | None = None) -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as name, serving(Path(name), port=options.port) as states:
        fill(states)
        print(f"http://127.0.0.1:{states.port} {states.jobs}", flush=True)
        with suppress(KeyboardInterrupt):
            os.waitpid(states.pid, 0)


if __name__ == "__main__":
    main()
