"""The pages as HTML: what they show in each state and language, what their forms do; foreign text stays text."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html import unescape
from html.parser import HTMLParser
from importlib import resources
from itertools import pairwise
from typing import Any

import httpx
import pytest

from lorahydra.names import State
from lorahydra.service.access import Access
from lorahydra.service.errors import TooManyError
from lorahydra.service.pages import pages_router
from lorahydra.service.pages_chart import chart, ticks
from lorahydra.service.pages_shapes import Shapes, plain
from lorahydra.service.pages_words import LANGUAGES, Words, chosen_language, messages
from lorahydra.service.service import Service
from lorahydra.service.views import (
    Examples,
    ExampleView,
    FineTuneParams,
    JobState,
    JobView,
    LeaderboardRow,
    LogTail,
    MlflowLinks,
    Page,
)

HOSTILE = "<script>alert(1)</script>\" onload='x' {{ 7*7 }} </pre>"
NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)
EN, RU = Words("en"), Words("ru")


# Words


def test_both_languages_say_everything() -> None:
    first, second = messages("en"), messages("ru")
    assert set(first) == set(second)
    for key, message in first.items():
        other = second[key]
        assert isinstance(message, str) == isinstance(other, str), key
        if isinstance(message, str):
            assert fields(message) == fields(str(other)), key
        else:
            assert set(message) == {"one", "other"}, key
            assert isinstance(other, dict)
            assert set(other) == {"one", "few", "many"}, key
            wanted = fields(message["other"])
            assert all(fields(form) == wanted for form in (*message.values(), *other.values())), key


def fields(message: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(message) if name}


def test_templates_and_code_name_messages_that_there_are() -> None:
    package = resources.files("lorahydra.service")
    sources = [*(package / "templates").iterdir(), *(f for f in package.iterdir() if f.name.startswith("pages"))]
    used: set[str] = set()
    for source in sources:
        text = source.read_text(encoding="utf-8")
        used |= set(re.findall(r"""\b(?:t|words|_words)\(\s*['"]([a-z0-9_.]+)['"][,)]""", text))
        used |= set(re.findall(r"""\{\{ t\('[a-z.]+'[^}]* else t\('([a-z.]+)'""", text))
    assert len(used) > 150
    assert used <= set(EN._messages)
    for state in JobState:
        assert f"state.{state}" in EN
        assert f"study.{state}" in EN
    assert all(f"trial.{state}" in EN for state in State if state.value != "stopped")


@pytest.mark.parametrize(
    ("n", "said"),
    [
        (0, "0 строк"), (1, "1 строка"), (2, "2 строки"), (4, "4 строки"), (5, "5 строк"), (11, "11 строк"),
        (12, "12 строк"), (14, "14 строк"), (21, "21 строка"), (22, "22 строки"), (25, "25 строк"), (101, "101 строка"),
        (111, "111 строк"), (1234, "1234 строки"), (12345, "12\N{NO-BREAK SPACE}345 строк"),
    ],
)  # fmt: skip
def test_russian_plurals(n: int, said: str) -> None:
    assert RU("unit.rows", n=n) == said


@pytest.mark.parametrize(
    ("cookie", "accepted", "language"),
    [
        (None, None, "en"),
        (None, "ru-RU,ru;q=0.9,en;q=0.8", "ru"),
        (None, "en;q=0.5, ru;q=0.7", "ru"),
        (None, "de, fr;q=0.9", "en"),
        (None, "de, ru;q=0.1", "ru"),
        (None, "ru;q=0, en;q=0.1", "en"),
        (None, "ru;q=x", "en"),
        (None, ";;;,,=" * 999, "en"),
        ("ru", "en", "ru"),
        ("en", "ru", "en"),
        ("xx", "ru", "ru"),
    ],
)
def test_the_language_is_chosen(cookie: str | None, accepted: str | None, language: str) -> None:
    assert chosen_language(cookie, accepted) == language


def test_what_the_service_says_most_is_translated(service: Service) -> None:
    lines = [judge.missing for judge in service.judges() if judge.missing]
    lines += [service.estimate(None, FineTuneParams(False, None, model)).basis for model in ("tiny", "some/model")]
    assert len(lines) >= 5
    for line in lines:
        assert (EN.said(line) or "").replace("`", "") == line.replace("`", "")
        assert re.search("[а-я]", RU.said(line) or ""), line
    assert RU.said("something else") is None


# Shapes


def test_durations() -> None:
    found = [Shapes(EN).duration(s) for s in (None, 0, 5, 60, 95, 599, 605, 3599, 3600, 3900, 86400, 90000, 200000)]
    assert found == [
        "–", "0 s", "5 s", "1 min", "1 min 35 s", "9 min 59 s", "10 min", "60 min", "1 h", "1 h 5 min", "1 day",
        "1 day 1 h", "2 days 7 h",
    ]  # fmt: skip
    assert Shapes(RU).duration(90000) == "1 день 1 ч"


def test_other_values() -> None:
    english, russian = Shapes(EN, NOW), Shapes(RU, NOW)
    assert (english.score(0.71094), russian.score(0.71094), english.score(None)) == ("0.7109", "0,7109", "–")
    assert (english.gain(0.1), english.gain(-0.1)) == ("+0.1000", "−0.1000")
    assert (english.money(0), english.money(0.001), english.money(1234.5)) == ("$0.00", "less than $0.01", "$1,234.50")
    assert russian.money(1234.5) == "1234,50 $"
    assert [english.size(n) for n in (0, 1023, 2048, 5 << 20, 3 << 40)] == [
        "0 B", "1,023 B", "2.0 KiB", "5.0 MiB", "3,072 GiB",
    ]  # fmt: skip
    assert english.ago(NOW - timedelta(seconds=3)) == "just now"
    assert english.ago(NOW + timedelta(hours=3)) == "just now"
    assert english.ago(NOW - timedelta(minutes=61)) == "1 h ago"
    assert russian.ago(NOW - timedelta(days=3)) == "3 дня назад"
    assert [english.tick(value) for value in (0.5, 0.25, 1.0, 0)] == ["0.5", "0.25", "1", "0"]
    assert english.link("javascript:alert(1)") is None
    assert english.link("http://127.0.0.1:5000/#/x") is not None


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("10%\r50%\r100%\nnext\r\n", "100%\nnext\n"),
        ("a\x00b\x08c\x9bd", "abcd"),
        ("\u202eevil\u2066", "evil"),
        ("tab\tstays", "tab\tstays"),
        ("─ русский 🙂", "─ русский 🙂"),
    ],
)
def test_terminal_commands_are_taken_out(given: str, shown: str) -> None:
    assert plain(given) == shown


def row(number: int, combined: float | None, rank: int | None = None, **changes: Any) -> LeaderboardRow:
    scored = combined is not None
    made = LeaderboardRow(
        rank=rank,
        number=number,
        state="complete" if scored else "pruned",
        params={"lora.r": 16, "training.learning_rate": 2e-4},
        combined=combined,
        combined_low=None if combined is None else combined - 0.05,
        combined_high=None if combined is None else combined + 0.05,
        bertscore_f1=combined,
        judge_score=None,
        loss=1.5,
        seconds=12.0,
        failure=None,
        mlflow_url=None,
    )
    return replace(made, **changes)


def test_the_chart() -> None:
    assert chart([], 5) is None
    assert chart([row(0, None)], 5) is None
    rows = [row(2, 0.7, 1), row(0, 0.5, 2), row(3, 0.6, 3), row(1, None)]
    drawn = chart(rows, 20)
    assert drawn is not None
    assert [mark.row.number for mark in drawn.marks] == [0, 2, 3]
    assert [mark.row.number for mark in drawn.ended] == [1]
    assert [mark.is_best for mark in drawn.marks] == [False, True, False]
    heights = [mark.y for mark in drawn.marks]
    assert heights[1] < heights[2] < heights[0]
    assert all(drawn.left <= mark.x <= drawn.right for mark in drawn.marks)
    assert drawn.best_line.count("V") == 1
    one = chart([row(0, 0.5, 1, combined_low=None, combined_high=None)], 5)
    assert one is not None
    assert one.marks[0].low is None


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.5, 0.5), (0.61, 0.74), (0.8234, 0.8241), (0, 99), (-3.2, 4)])
def test_ticks_are_few_and_hold_the_values(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 2 <= len(found) <= 7
    assert found[0] <= low
    assert found[-1] >= high
    steps = {round(b - a, 9) for a, b in pairwise(found)}
    assert len(steps) == 1


# Pages


@pytest.fixture
def make_site(make_client: Callable[..., httpx.Client]) -> Callable[..., httpx.Client]:
    """Makes clients of pages and API, as a browser without JavaScript would ask."""

    def make(access: Access | None = None, **options: Any) -> httpx.Client:
        client = make_client(access, pages=[pages_router()], **options)
        client.base_url = str(client.base_url).removesuffix("/api/v1/")
        client.headers["accept"] = "text/html"
        client.timeout = 30
        return client

    return make


@pytest.fixture
def site(make_site: Callable[..., httpx.Client]) -> httpx.Client:
    return make_site()


@pytest.fixture
def rich(service: Service, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., JobView]]:
    """Makes the service tell of one job whatever is wanted."""

    def make(state: JobState = JobState.RUNNING, **changes: Any) -> JobView:
        judged = changes.pop("judged", False)
        ended = state in (JobState.COMPLETE, JobState.FAILED, JobState.CANCELLED)
        job = JobView(
            id=1, project=1, project_name=HOSTILE, name=HOSTILE, dataset=None, dataset_name="demo",
            params=FineTuneParams(judged, "gemini" if judged else None, "tiny", 5), state=state,
            place=2 if state is JobState.QUEUED else None, study="fine-tune-1", folder="/srv/jobs/1", trials_finished=3,
            trials_wanted=5, trial_current=None if ended else 3, best_score=0.7, best_trial=2,
            best_params={"lora.r": 16}, baseline_score=None, test_score=None, seconds=61.0,
            seconds_left=0 if ended else 75.0, resumptions=0, failure=None,
            mlflow=MlflowLinks("sqlite:////srv/mlflow.db", None, None, None), created=NOW, started=NOW,
            ended=NOW if ended else None, can_cancel=not ended, can_resume=ended and state is not JobState.COMPLETE,
            has_adapter=True,
        )  # fmt: skip
        job = replace(job, **changes)
        rows = [row(2, 0.7, 1, judge_score=80.0 if judged else None), row(0, 0.5, 2), row(1, None)]
        reason = "Good <b>but</b> long" if judged else None
        answer = ExampleView(
            HOSTILE, HOSTILE, "\x1b[31m<img src=x>", 0.8, 80.0 if judged else None, reason, "<b>base", 0.5, None
        )
        examples = Examples("test" if state is JobState.COMPLETE else "validation", 2, [answer], 12)
        for name, value in {
            "job": job,
            "jobs": Page([job], 1, 20, 0),
            "leaderboard": rows,
            "log": LogTail(f"\x1b[32mline\x1b[0m\n{HOSTILE}\n10%\r100%", 4096, True),
            "examples": examples,
        }.items():
            monkeypatch.setattr(service, name, lambda *_, given=value, **__: given)
        return job

    yield make
    monkeypatch.undo()


class Safety(HTMLParser):
    """Collects what a strict content policy or a hostile text would stumble over."""

    def __init__(self) -> None:
        super().__init__()
        self.faults: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name.startswith(("on", "hx-on")) or name in ("style", "srcdoc"):
                self.faults.append(f"{tag} {name}")
            if name in ("href", "src", "action") and (value or "").strip().lower().startswith(
                ("javascript", "data", "//")
            ):
                self.faults.append(f"{tag} {name}={value}")
            if (
                name in ("href", "src")
                and tag in ("script", "link", "img")
                and not (value or "").startswith("/static/")
            ):
                self.faults.append(f"{tag} {name}={value}")
            if name == "id":
                self.ids.append(str(value))
        if tag in ("style", "iframe", "object", "b") and tag != "b":
            self.faults.append(tag)
        if tag == "script" and not any(name == "src" for name, _ in attributes):
            self.faults.append("script without src")


def checked(answer: httpx.Response, status: int = 200) -> str:
    """The page's text, when nothing in it can run."""
    assert answer.status_code == status, answer.text
    safety = Safety()
    safety.feed(answer.text)
    assert safety.faults == []
    assert len(safety.ids) == len(set(safety.ids)), safety.ids
    assert "<script>" not in answer.text
    assert "<img src=x" not in answer.text
    assert "\x1b" not in answer.text
    assert answer.headers["content-security-policy"].startswith("default-src 'self'")
    return answer.text


def key_in(page: str) -> str:
    found = re.search(r'name="key" value="([^"]+)"', page)
    assert found is not None
    return found[1]


@pytest.mark.parametrize("language", LANGUAGES)
def test_an_empty_server_teaches(site: httpx.Client, language: str) -> None:
    words = Words(language)
    answer = site.get("/", headers={"accept-language": language})
    page = checked(answer)
    assert f'<html lang="{language}">' in page
    assert words("empty.title") in page
    assert words("list.configure") in page
    assert words("list.quick") in page
    assert words("guide.no.privacy") in page
    assert answer.headers["content-language"] == language
    assert answer.headers["cache-control"] == "no-store"


def test_the_language_is_remembered(site: httpx.Client) -> None:
    assert '<html lang="en">' in site.get("/").text
    answer = site.get("/", params={"lang": "ru"})
    assert '<html lang="ru">' in answer.text
    assert "httponly" in answer.headers["set-cookie"].lower()
    assert '<html lang="ru">' in site.get("/fine-tunes").text
    assert "set-cookie" not in site.get("/", params={"lang": "de"}).headers


def test_static_files(site: httpx.Client) -> None:
    page = site.get("/").text
    for address in re.findall(r'"(/static/[^"]+)"', page):
        answer = site.get(address)
        assert answer.status_code == 200
        assert "immutable" in answer.headers["cache-control"]
    for name in ("nothing.js", "..%2Fpages.py", "app.css%00", "%2e%2e/service.py"):
        assert site.get(f"/static/{name}").status_code == 404


@pytest.mark.parametrize(
    "path", ["/fine-tunes/1", "/projects/1", "/datasets/1", "/fine-tunes/x", "/fine-tunes/" + "9" * 30]
)
def test_what_is_not_there_has_a_page(site: httpx.Client, path: str) -> None:
    page = checked(site.get(path, headers={"accept-language": "ru"}), 404)
    assert RU("error.404") in page


def test_projects(site: httpx.Client) -> None:
    answer = site.post("/projects", data={"name": "<b>Support</b> & co"})
    assert answer.status_code == 303
    assert answer.headers["location"] == "/projects/1"
    page = checked(site.get("/projects/1"))
    assert "&lt;b&gt;Support&lt;/b&gt; &amp; co" in page
    assert EN("error.422") in checked(site.post("/projects", data={"name": " "}), 422)
    site.post("/projects", data={"name": "Other"})
    assert 'aria-current="page"' in site.get("/").text
    assert EN("list.choose") in site.get("/fine-tunes").text


def test_the_form_starts_a_fine_tune_once(site: httpx.Client, service: Service) -> None:
    page = checked(site.get("/configure"))
    assert 'value="off" checked' in page  # no judge is set up
    assert re.search(r'<option value="gemini" disabled[^>]*>gemini', page)
    sent = {"key": key_in(page), "judge": "off", "base_model": "tiny", "trials": "7", "name": "Mine", "action": "start"}
    for _ in range(2):
        answer = site.post("/configure", data=sent)
        assert (answer.status_code, answer.headers["location"]) == (303, "/fine-tunes/1")
    job = service.job(1)
    assert (job.name, job.params.n_trials, job.params.use_llm_judge) == ("Mine", 7, False)
    assert (job.params.base_model_name, job.project_name) == ("tiny", "My first project")
    assert service.jobs().total == 1
    # Changed after the browser's "back": told, and with a new key, so that the next press starts it.
    page = checked(site.post("/configure", data=sent | {"trials": "8"}), 409)
    assert EN("refusal.idempotency_key_reused") in page
    answer = site.post("/configure", data=sent | {"trials": "8", "key": key_in(page)})
    assert answer.headers["location"] == "/fine-tunes/2"


@pytest.mark.parametrize("trials", ["4", "101", "", "x", "5.5", "-5", "9" * 40, "٧"])
def test_a_wrong_number_of_trials_is_named_beside_what_was_sent(site: httpx.Client, trials: str) -> None:
    site.post("/projects", data={"name": "One"})
    sent = {"project": "1", "judge": "off", "base_model": "tiny", "trials": trials, "name": HOSTILE, "action": "start"}
    page = checked(site.post("/configure", data=sent, headers={"accept-language": "ru"}), 422)
    assert RU("configure.trials.bad", fewest=5, most=100) in page
    assert 'aria-invalid="true"' in page
    assert HOSTILE in unescape(page)
    assert '<option value="tiny" selected>' in page


def test_refusals_are_shown_in_the_form(site: httpx.Client) -> None:
    sent = {"judge": "on", "judge_model": "gemini", "base_model": "tiny", "trials": "5", "action": "start"}
    page = checked(site.post("/configure", data=sent), 409)
    assert EN("refusal.judge_not_configured") in page
    assert "GEMINI_API_KEY" in page or "pip install" in page
    page = checked(site.post("/configure", data=sent | {"judge": "off", "other_model": "../../etc"}), 422)
    assert EN("configure.refused") in page
    assert 'value="../../etc"' in page
    checked(site.post("/configure", data=sent | {"project": "77"}), 404)


def test_parts_for_the_dialog(site: httpx.Client) -> None:
    part = checked(site.get("/configure", headers={"hx-request": "true"}))
    assert "<html" not in part
    assert "data-closes-dialog" in part
    sent = {"judge": "off", "base_model": "tiny", "trials": "5", "action": "start"}
    answer = site.post("/configure", data=sent, headers={"hx-request": "true"})
    assert (answer.status_code, answer.headers["hx-redirect"]) == (204, "/fine-tunes/1")


def test_the_estimate(site: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"judge": "on", "judge_model": "gemini", "base_model": "tiny", "trials": "10"}
    part = checked(site.get("/estimate", params=asked))
    assert "<html" not in part
    assert "at most" in part
    assert EN("estimate.privacy", judge="gemini") in part
    part = checked(site.get("/estimate", params=asked | {"judge": "off"}))
    assert EN("estimate.none") in part
    part = checked(site.get("/estimate", params=asked | {"trials": "3"}, headers={"accept-language": "ru"}))
    assert RU("configure.trials.bad", fewest=5, most=100) in part
    page = checked(site.post("/configure", data=asked | {"action": "estimate"}))
    assert "at most" in page


def test_the_quick_start_asks_when_there_is_no_judge(site: httpx.Client, service: Service) -> None:
    page = checked(site.post("/quick-start", data={"key": key_in(site.get("/").text)}), 409)
    assert EN("nojudge.title") in page
    assert "<code>gigachat</code>" in page
    answer = site.post("/quick-start", data={"key": key_in(page), "judge": "off"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/fine-tunes/1")
    assert service.job(1).params.n_trials == 20
    assert service.job(1).params.use_llm_judge is False


def test_the_quick_start_takes_the_judge(site: httpx.Client, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "key-of-nobody")
    assert "gemini" in site.get("/").text
    site.post("/projects", data={"name": "One"})
    key = key_in(site.get("/").text)
    for _ in range(2):
        assert site.post("/quick-start", data={"project": "1", "key": key}).headers["location"] == "/fine-tunes/1"
    assert service.job(1).params == FineTuneParams(True, "gemini", service.job(1).params.base_model_name, 20)
    site.post("/quick-start", data={"project": "1", "key": key_in(site.get("/").text)})
    assert service.jobs().total == 2
    assert "key-of-nobody" not in site.get("/configure").text


def test_too_many_starts(make_site: Callable[..., httpx.Client]) -> None:
    site = make_site(starts_per_minute=1)
    assert site.post("/quick-start", data={"judge": "off"}).status_code == 303
    assert EN("error.429") in checked(site.post("/quick-start", data={"judge": "off"}), TooManyError.status)
    sent = {"judge": "off", "base_model": "tiny", "trials": "5", "action": "start"}
    assert EN("refusal.too_many_requests") in checked(site.post("/configure", data=sent), 429)


def test_cancel_and_resume(site: httpx.Client, service: Service) -> None:
    site.post("/quick-start", data={"judge": "off"})
    page = checked(site.get("/fine-tunes/1"))
    assert EN("job.cancel") in page
    assert EN("list.place", n=1) in page
    assert site.post("/fine-tunes/1/cancel").headers["location"] == "/fine-tunes/1"
    assert service.job(1).state is JobState.CANCELLED
    page = checked(site.get("/fine-tunes/1"))
    assert EN("job.resume") in page
    assert "hx-trigger" not in page  # nothing changes any more
    assert EN("error.409") in checked(site.get("/fine-tunes/1/adapter"), 409)
    site.post("/fine-tunes/1/resume")
    assert service.job(1).state is JobState.QUEUED
    assert EN("error.409") in checked(site.post("/fine-tunes/1/resume"), 409)


def test_an_upload_without_javascript(site: httpx.Client, rows: bytes) -> None:
    site.post("/projects", data={"name": "One"})
    answer = site.post("/projects/1/datasets", files={"file": ("<i>my.jsonl", rows)})
    assert (answer.status_code, answer.headers["location"]) == (303, "/datasets/1")
    page = checked(site.get("/datasets/1", headers={"accept-language": "ru"}))
    assert "&lt;i&gt;my.jsonl" in page
    assert RU("unit.rows", n=35) in page
    assert "/configure?project=1&amp;dataset=1" in page
    assert '<option value="1" selected>' in checked(site.get("/configure", params={"project": 1, "dataset": 1}))
    checked(site.get("/projects/1"))


BAD = b'\n{"question": 5, "answer": "<script>alert(1)</script>"}\n{"<b>": 1}\nnot json'


def test_problems_of_an_upload_are_named(site: httpx.Client, rows: bytes, service: Service) -> None:
    site.post("/projects", data={"name": "One"})
    page = checked(site.post("/projects/1/datasets", files={"file": ("bad.jsonl", rows + BAD)}), 422)
    assert EN("report.bad", n=3, name="bad.jsonl") in page
    assert '<td class="number">41</td><td><code>question</code></td>' in page
    assert service.datasets(1).total == 0
    page = checked(site.post("/projects/1/datasets", files={"file": ("my.exe", rows)}), 422)
    assert ".parquet" in page
    checked(site.post("/projects/9/datasets", files={"file": ("my.jsonl", rows)}), 404)
    checked(site.post("/projects/1/datasets", data={"nothing": "1"}), 415)


def test_an_upload_beside_the_form(site: httpx.Client, rows: bytes, service: Service) -> None:
    part = {"hx-request": "true"}
    answer = site.post("/projects/first/datasets", files={"file": ("my.jsonl", rows)}, headers=part)
    text = checked(answer, 201)
    assert answer.headers["hx-trigger"] == "dataset-changed"
    assert text.lstrip().startswith("<fieldset")
    assert '<input type="hidden" name="project" value="1">' in text
    assert '<option value="1" selected>' in text
    assert EN("report.ok", name="my.jsonl") in text
    text = checked(site.post("/projects/1/datasets", files={"file": ("bad.jsonl", rows + BAD)}, headers=part), 422)
    assert EN("report.bad", n=3, name="bad.jsonl") in text
    assert "my.jsonl" in text  # the good one can still be chosen
    assert service.projects().total == 1


def test_logging_in(make_site: Callable[..., httpx.Client]) -> None:
    site = make_site(Access(token="secret-token"))
    answer = site.get("/fine-tunes/1")
    assert (answer.status_code, answer.headers["location"]) == (303, "/login")
    page = checked(site.get("/login", headers={"accept-language": "ru"}))
    assert RU("login.text") in page
    assert RU("base.logout") not in page
    assert site.get("/login", headers={"hx-request": "true"}).headers["hx-refresh"] == "true"
    answer = site.post("/login", data={"token": "wrong"})
    assert EN("login.wrong") in checked(site.get(answer.headers["location"]))
    assert site.get("/static/app.css").status_code == 200
    site.post("/login", data={"token": "secret-token"})
    page = checked(site.get("/"))
    assert EN("base.logout") in page
    assert "secret-token" not in page


# A study


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("state", JobState)
@pytest.mark.parametrize("judged", [False, True])
def test_each_state_is_shown(
    site: httpx.Client, rich: Callable[..., JobView], state: JobState, language: str, judged: bool
) -> None:
    failure = "judge gemini: <b>no</b> such model" if state is JobState.FAILED else None
    scores = {"baseline_score": 0.5, "test_score": 0.7} if state is JobState.COMPLETE else {}
    job = rich(state, judged=judged, failure=failure, **scores)
    words = Words(language)
    site.headers["accept-language"] = language
    page = checked(site.get("/fine-tunes/1"))
    for part in ("live", "examples", "log"):
        checked(site.get(f"/fine-tunes/1/{part}"))
    assert words(f"study.{state}", n=5, done=3) in page
    assert f'<span class="badge {state}">{words(f"state.{state}")}</span>' in page
    assert ('id="cancel"' in page) == job.can_cancel
    assert ("hx-trigger" in page) == (job.ended is None)
    assert (words("result.title") in page) == (state is JobState.COMPLETE)
    assert (words("examples.reason") in page) == judged
    assert "Good &lt;b&gt;but&lt;/b&gt; long" in page or not judged
    assert failure is None or "&lt;b&gt;no&lt;/b&gt; such model" in page
    assert words("chart.text", n=2, best=Shapes(words).score(0.7), trial=2) in unescape(page)
    assert '<th scope="col" class="number"><code title="lora.r">r</code></th>' in page
    assert "line\n" in page
    assert "100%" in page
    assert "10%" not in page
    assert HOSTILE in unescape(page)
    checked(site.get("/jobs"))


def test_a_gain_is_not_claimed_where_there_is_none(site: httpx.Client, rich: Callable[..., JobView]) -> None:
    rich(JobState.COMPLETE, baseline_score=0.7, test_score=0.6)
    page = checked(site.get("/fine-tunes/1"))
    assert EN("result.worse") in page
    assert "−0.1000" in page


def test_links_into_mlflow(site: httpx.Client, rich: Callable[..., JobView]) -> None:
    rich(mlflow=MlflowLinks("s", "r", "http://127.0.0.1:5000/#/experiments/1/runs/r", "javascript:alert(1)"))
    page = checked(site.get("/fine-tunes/1"))
    assert 'href="http://127.0.0.1:5000/#/experiments/1/runs/r"' in page
    assert "javascript:" not in page


def test_answers_have_pages(site: httpx.Client, rich: Callable[..., JobView]) -> None:
    rich()
    page = checked(site.get("/fine-tunes/1", params={"examples": 5}))
    assert 'href="/fine-tunes/1?examples=10#examples"' in page
    assert 'href="/fine-tunes/1?examples=0#examples"' in page
    assert 'hx-get="/fine-tunes/1/examples?examples=5"' in page
