"""Clients of the pages, a service that tells of one fine-tune whatever is wanted, and a real browser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from tests.service.pages.browsing import CHROMIUM, QUIET
from tests.service.pages.rows import HOSTILE, NOW, row

from lorahydra.service.access import Access
from lorahydra.service.pages import routes
from lorahydra.service.service import Service
from lorahydra.service.views import (
    Examples,
    ExampleView,
    FineTuneParams,
    JobState,
    JobView,
    LogTail,
    MlflowLinks,
    Page,
)


@pytest.fixture
def make_site(make_client: Callable[..., httpx.Client]) -> Callable[..., httpx.Client]:
    """Makes clients of pages and API, as a browser without JavaScript would ask."""

    def make(access: Access | None = None, **options: Any) -> httpx.Client:
        client = make_client(access, **options)
        client.base_url = str(client.base_url).removesuffix("/api/v1/")
        client.headers["accept"] = "text/html"
        return client

    return make


@pytest.fixture
def site(make_site: Callable[..., httpx.Client]) -> httpx.Client:
    return make_site()


@pytest.fixture
def rich(service: Service, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., JobView]]:
    """Makes the service tell of one job whatever is wanted."""

    def make(state: JobState = JobState.RUNNING, **changes: Any) -> JobView:
        judged, given = changes.pop("judged", False), changes.pop("rows", None)
        ended = state in (JobState.COMPLETE, JobState.FAILED, JobState.CANCELLED)
        job = JobView(
            id=1, project=1, project_name=HOSTILE, name=HOSTILE, dataset=None, dataset_name="demo",
            params=FineTuneParams(judged, "gemini" if judged else None, "tiny", 5), state=state,
            place=2 if state is JobState.QUEUED else None, study="fine-tune-1", folder="/srv/jobs/1", trials_finished=3,
            trials_wanted=5, trial_current=None if ended else 3, best_score=0.7, best_trial=2,
            best_params={"lora.r": 16}, baseline_score=None, test_score=None, gain=None, gain_low=None,
            gain_high=None, gain_examples=None, test_rows=None, verdict=None, choice=None, seconds=61.0,
            seconds_left=0 if ended else 75.0, resumptions=0, failure=None,
            mlflow=MlflowLinks("sqlite:////srv/mlflow.db", None, None, None), created=NOW, started=NOW,
            ended=NOW if ended else None, can_cancel=not ended, can_resume=ended and state is not JobState.COMPLETE,
            can_continue=ended, test_low=None, test_high=None,
            has_adapter=True,
        )  # fmt: skip
        job = replace(job, **changes)
        chosen = {} if job.choice is None else {"is_winner": True, "p_best": 0.6, "in_set": True}
        chosen |= {"final_combined": 0.68, "final_examples": 48} if judged and job.choice is not None else {}
        rows = given or [row(2, 0.7, 1, **chosen, judge_score=80.0 if judged else None), row(0, 0.5, 2), row(1, None)]
        reason = "Good <b>but</b> long" if judged else None
        answer = ExampleView(
            HOSTILE, HOSTILE, "\x1b[31m<img src=x>", 0.8, 80.0 if judged else None, reason, "<b>base", 0.5, None
        )
        examples = Examples("test" if state is JobState.COMPLETE else "validation", 2, [answer], 12)
        log = LogTail(f"\x1b[32mline\x1b[0m\n{HOSTILE}\n10%\r100%", 4096, True)
        for owner, name, value in (
            (service.jobs, "get", job),
            (service.jobs, "page", Page([job], 1, 20, 0)),
            (service.stores, "leaderboard", rows),
            (service.stores, "examples", examples),
            (routes, "log_tail", log),
        ):
            monkeypatch.setattr(owner, name, lambda *_, given=value, **__: given)
        return job

    yield make
    monkeypatch.undo()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield browser
        browser.close()
