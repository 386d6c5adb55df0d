"""A fine-tune's page in a real browser, on a service that tells of one fine-tune whatever is wanted."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from sqlalchemy import update
from tests.service.pages.browsing import AXE, MILLISECONDS, NEEDS_BROWSER
from tests.service.pages.rows import NOW, row
from tests.service.test_deletions import add_job
from tests.support.waiting import wait_for

from lorahydra.service.database import Job
from lorahydra.service.pages.shapes import Shapes
from lorahydra.service.pages.words import Words
from lorahydra.service.service import Service
from lorahydra.service.views import ChoiceView, Examples, ExampleView, JobState, JobView

pytest.importorskip("playwright.sync_api")
pytestmark = NEEDS_BROWSER

EN, RU = Words("en"), Words("ru")
MOSCOW = {"locale": "ru-RU", "timezone_id": "Europe/Moscow"}
DESK = {"viewport": {"width": 1280, "height": 900}}
PARAMS = {
    **{"lora.r": 16, "training.learning_rate": 0.00023456, "lora.lora_dropout": 0.05},
    **{"training.warmup_ratio": 0.1, "training.per_device_train_batch_size": 16},
}
LONG = "A long answer, of which the end can only be read by scrolling. " * 90


@pytest.fixture
def open_study(chromium: Any, site: httpx.Client) -> Iterator[Callable[..., Any]]:
    """Opens the page of fine-tune 1."""
    contexts = []

    def make(**options: Any) -> Any:
        contexts.append(chromium.new_context(**{"locale": "en-US", **DESK, **options}))
        contexts[-1].set_default_timeout(MILLISECONDS)
        page = contexts[-1].new_page()
        page.goto(str(site.base_url.join("/fine-tunes/1")))
        return page

    yield make
    for context in contexts:
        context.close()


def judged_rows(count: int) -> list[Any]:
    """Trials with a value in every column."""
    chosen = {"p_best": 0.62, "in_set": True, "final_combined": 0.68, "final_examples": 48, "judge_score": 80.25}
    rows = [row(n, 0.7 - n / 100, n + 1, params=PARAMS, seconds=3911.0, **chosen) for n in range(count)]
    return [replace(rows[0], is_winner=True), *rows[1:]]


@pytest.mark.parametrize("options", [{}, MOSCOW])
def test_nothing_is_cut_on_a_small_desk_and_axe_finds_nothing(
    rich: Callable[..., JobView],
    open_study: Callable[..., Any],
    service: Service,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, str],
) -> None:
    choice = ChoiceView(0, "highest_score", 0, 1, 1, 0.62, [0, 1], 0.01, 32, "")
    rich(JobState.COMPLETE, judged=True, choice=choice, rows=judged_rows(8))
    answer = ExampleView(LONG, LONG, LONG, 0.8, 80.0, LONG, LONG, 0.5, 40.0)
    monkeypatch.setattr(service.stores, "examples", lambda *_: Examples("test", 0, [answer], 1))
    page = open_study(**options)
    board = page.locator("#board")
    assert board.evaluate("e => e.scrollWidth <= e.clientWidth")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    report = page.evaluate(f"{AXE}; axe.run()")
    assert len(report["passes"]) > 15
    assert [(fault["id"], fault["nodes"][0]["html"]) for fault in report["violations"]] == []


def test_the_time_of_the_start_is_the_readers_and_stays(
    rich: Callable[..., JobView], open_study: Callable[..., Any], site: httpx.Client
) -> None:
    rich(JobState.RUNNING)
    page = open_study(**MOSCOW)
    shown = page.locator("time").first
    assert NOW.hour == 12
    assert re.fullmatch(r"2 января 2026\sг\. в 15:00", shown.inner_text())
    page.evaluate("document.dispatchEvent(new CustomEvent('htmx:after:swap'))")  # a part of the page was renewed
    assert "15:00" in shown.inner_text()


def test_the_browser_tells_when_it_is_done(rich: Callable[..., JobView], open_study: Callable[..., Any]) -> None:
    rich(JobState.RUNNING)
    page = open_study(**MOSCOW)
    button = page.get_by_role("button", name=RU("notify.ask"))
    page.evaluate("Notification.requestPermission = async () => 'denied'")
    button.click()
    page.get_by_text(RU("notify.denied")).wait_for()
    page.context.grant_permissions(["notifications"])
    page.add_init_script(
        "window.told = []; const Real = Notification;"
        "window.Notification = class extends Real { constructor(t, o) { super(t, o); told.push([t, o.body]); } };"
    )
    page.reload()
    button.click()
    page.get_by_role("button", name=RU("notify.off"), pressed=True).click()
    assert button.get_attribute("aria-pressed") == "false"
    button.click()
    page.get_by_text(RU("notify.needs")).wait_for()
    page.reload()  # it is remembered
    page.get_by_role("button", name=RU("notify.off")).wait_for()
    assert page.evaluate("told") == []
    done = rich(JobState.COMPLETE)
    wait_for(lambda: page.evaluate("told.length"))
    assert page.evaluate("told") == [[done.name, RU("notify.complete")]]
    page.locator("#notify").wait_for(state="hidden")
    page.reload()
    assert page.locator("#notify").count() == 0


@pytest.mark.parametrize("words", [EN, RU], ids=["en", "ru"])
def test_from_one_fine_tune_to_the_next_steps(
    open_study: Callable[..., Any], service: Service, monkeypatch: pytest.MonkeyPatch, words: Words
) -> None:
    for name in ("One", "Two"):
        job = add_job(service, 123, name=name)
        known = {
            "failure": None,
            "finished": 5,
            "test_score": 0.6,
            "trial_seconds": 12.0,
            "best_params": {"lora.r": job},
        }
        with service.jobs._database.changing() as session:
            session.execute(update(Job).where(Job.id == job).values(**known))
    monkeypatch.setattr(
        service.stores,
        "test_table",
        lambda job: [{"prompt": str(n), "bertscore_f1": 0.5 + n % 3 / 100 + job.id / 10} for n in range(8)],
    )
    page = open_study(locale=words.language)
    page.get_by_role("link", name=words("compare.with")).click()
    page.get_by_label(words("compare.second"), exact=True).select_option("2")
    page.get_by_role("button", name=words("compare.do")).click()
    page.get_by_text(words("compare.higher")).wait_for()
    assert Shapes(words).gain(0.1) in page.locator("#verdict").inner_text()
    assert page.locator("#settings tbody tr").all_inner_texts() == [f"lora.r {words('compare.searched')}\t1\t2"]
    report = page.evaluate(f"{AXE}; axe.run()")
    assert [(fault["id"], fault["nodes"][0]["html"]) for fault in report["violations"]] == []

    page.get_by_role("link", name=words("compare.back")).click()
    page.get_by_role("link", name=words("continue.title")).click()
    estimate = page.locator("#estimate")
    estimate.get_by_text(words("estimate.about", time=Shapes(words).duration(120))).wait_for()
    page.get_by_label(words("continue.trials")).fill("5")
    estimate.get_by_text(words("refusal.bad_more_trials", n=5, most=100)).wait_for()
    page.get_by_role("button", name=words("continue.start")).click()
    page.get_by_role("alert").filter(has_text=words("refusal.bad_more_trials", n=5, most=100)).wait_for()
    page.get_by_label(words("continue.trials")).fill("8")
    estimate.get_by_text(words("estimate.about", time=Shapes(words).duration(36))).wait_for()
    report = page.evaluate(f"{AXE}; axe.run()")
    assert [(fault["id"], fault["nodes"][0]["html"]) for fault in report["violations"]] == []
    page.get_by_role("button", name=words("continue.start")).click()
    page.wait_for_url("**/fine-tunes/1")
    page.locator(".badge.queued").wait_for()
    assert service.jobs.get(1).trials_wanted == 8
