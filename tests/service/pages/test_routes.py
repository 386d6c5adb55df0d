"""The pages as HTML: what they show in each state and language, what their forms do; foreign text stays text."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import unescape
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest
from tests.service.pages.rows import HOSTILE, row
from tests.service.test_deletions import PHRASE, add_dataset, add_job
from tests.support.english import english_words
from tests.support.waiting import wait_for

from lorahydra.errors import TrackingError
from lorahydra.names import Stage, TuningEffect
from lorahydra.service.access import Access
from lorahydra.service.database import Job
from lorahydra.service.errors import TooManyError
from lorahydra.service.lengths import Lengths
from lorahydra.service.pages.shapes import Shapes
from lorahydra.service.pages.words import LANGUAGES, Words
from lorahydra.service.planning import rows_warning
from lorahydra.service.service import Service
from lorahydra.service.views import (
    BaselineView,
    ChoiceView,
    FewShotView,
    FineTuneParams,
    ForgettingView,
    JobState,
    JobView,
    MlflowLinks,
)

pytestmark = pytest.mark.slow

EN, RU = Words("en"), Words("ru")
RESULT = {
    **{"baseline_score": 0.5, "test_score": 0.7, "gain": 0.05, "gain_low": -0.01, "gain_high": 0.11},
    **{"gain_examples": 30, "test_rows": 32, "verdict": "no_clear_difference"},
}


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
    """The page's text, when nothing in it can run and a Russian one has no English words."""
    assert answer.status_code == status, answer.text
    safety = Safety()
    safety.feed(answer.text)
    assert safety.faults == []
    assert len(safety.ids) == len(set(safety.ids)), safety.ids
    assert "<script>" not in answer.text
    assert "<img src=x" not in answer.text
    assert "\x1b" not in answer.text
    assert answer.headers["content-security-policy"].startswith("default-src 'self'")
    if answer.headers["content-language"] == "ru":
        assert english_words(answer.text.replace(PHRASE, "")) == []
    return answer.text


def field_in(page: str, name: str) -> str:
    match = re.search(rf'name="{name}" value="([^"]+)"', page)
    assert match is not None
    return match[1]


def key_in(page: str) -> str:
    return field_in(page, "key")


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


@pytest.mark.parametrize("language", LANGUAGES)
def test_three_steps_to_the_first_fine_tune(site: httpx.Client, service: Service, language: str) -> None:
    words = Words(language)
    site.headers["accept-language"] = language
    example = site.get("/example.csv")
    assert example.headers["content-disposition"] == 'attachment; filename="example.csv"'
    current = '<li aria-current="step">{}</li>'
    assert current.format(words("steps.data")) in checked(site.get("/"))
    address = site.post("/projects/first/datasets", files={"file": ("my.csv", example.content)}).headers["location"]
    page = checked(site.get(address))
    assert current.format(words("steps.check")) in page
    assert words("report.ok", name="my.csv") in page
    assert service.datasets.get(1).rows == 90
    assert service.datasets.get(1).report["warnings"] == []
    assert "/datasets/1" in checked(site.get("/"))
    assert current.format(words("steps.start")) in checked(site.get("/configure", params={"project": 1, "dataset": 1}))
    key = key_in(site.get("/").text)
    for _ in range(2):
        assert site.post("/demo", data={"project": "1", "key": key}).headers["location"] == "/fine-tunes/1"
    job = service.jobs.get(1)
    assert (job.dataset, job.params.use_llm_judge, job.params.n_trials) == (None, False, 5)
    assert "steps" not in checked(site.get("/"))


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


def test_a_mistyped_address_has_a_page(site: httpx.Client) -> None:
    russian = {"accept-language": "ru"}
    for path in ("/nothing", "/fine-tunes/1/nothing", "/Projects/1", "/loginn"):
        assert RU("error.404") in checked(site.get(path, headers=russian), 404)
    page = checked(site.get(site.base_url.copy_with(raw_path=b"//evil.example/x"), headers=russian), 404)
    assert 'href="//' not in page, "that would be the address of another host"
    for path in ("/quick-start", "/fine-tunes/1/cancel"):  # as a browser asks when the answer to a form is loaded again
        assert RU("error.405") in checked(site.get(path, headers=russian), 405)
    for path in ("/api/v1/nothing", "/api/v2/projects", "/static/nothing.css"):
        assert site.get(path).json()["code"] == "not_found"


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
    job = service.jobs.get(1)
    assert (job.name, job.params.n_trials, job.params.use_llm_judge) == ("Mine", 7, False)
    assert (job.params.base_model_name, job.project_name) == ("tiny", "My first project")
    assert service.jobs.page().total == 1
    # Changed after the browser's "back": told, and with a new key, so that the next press starts it.
    page = checked(site.post("/configure", data=sent | {"trials": "8"}), 409)
    assert EN("refusal.idempotency_key_reused") in page
    answer = site.post("/configure", data=sent | {"trials": "8", "key": key_in(page), "project": "1"})
    assert answer.headers["location"] == "/fine-tunes/2"


@pytest.mark.parametrize("trials", ["4", "101", "", "x", "5.5", "-5", "9" * 40, "٧"])
def test_a_wrong_number_of_trials_is_named_beside_what_was_sent(site: httpx.Client, trials: str) -> None:
    site.post("/projects", data={"name": "One"})
    sent = {"project": "1", "judge": "off", "base_model": "tiny", "trials": trials, "name": HOSTILE, "action": "start"}
    page = checked(site.post("/configure", data=sent, headers={"accept-language": "ru"}), 422)
    assert RU("refusal.bad_trials", fewest=5, most=100) in page
    assert 'aria-invalid="true"' in page
    assert HOSTILE in unescape(page)
    assert '<option value="tiny" selected>' in page


def test_refusals_are_shown_in_the_form(site: httpx.Client) -> None:
    sent = {"judge": "on", "judge_model": "gemini", "base_model": "tiny", "trials": "5", "action": "start"}
    page = checked(site.post("/configure", data=sent), 409)
    assert EN("refusal.judge_not_configured") in page
    assert "GEMINI_API_KEY" in page or "pip install" in page
    assert 'name="project" value="1"' in page
    sent |= {"project": "1"}
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
    assert RU("refusal.bad_trials", fewest=5, most=100) in part
    part = checked(site.get("/estimate", params=asked | {"other_model": "../x"}, headers={"accept-language": "ru"}))
    assert "– не модель: выберите модель" in part
    page = checked(site.post("/configure", data=asked | {"action": "estimate"}))
    assert "at most" in page


def test_the_quick_start_asks_when_there_is_no_judge(site: httpx.Client, service: Service) -> None:
    page = checked(site.post("/quick-start", data={"key": key_in(site.get("/").text)}), 409)
    assert EN("nojudge.title") in page
    assert "<code>gigachat</code>" in page
    answer = site.post("/quick-start", data={"key": key_in(page), "judge": "off", "project": "1"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/fine-tunes/1")
    assert service.jobs.get(1).params.n_trials == 20
    assert service.jobs.get(1).params.use_llm_judge is False


def test_the_quick_start_offers_a_model_that_is_here(site: httpx.Client, service: Service) -> None:
    service.choices.overrides = ()  # the default model is on the hub
    default, here = service.choices.default_model(), service.choices.in_place_of_the_default()
    assert here is not None
    page = checked(site.post("/quick-start", data={"key": key_in(site.get("/").text)}), 409)
    assert EN("quick.model.text", model=default, here=here) in page
    assert f'name="model" value="{here}">{EN("quick.model.here", model=here)}, {EN("quick.without")}</button>' in page
    for number, model in enumerate((here, default), start=1):
        sent = {"key": key_in(page) + model, "judge": "off", "project": "1", "model": model}
        assert site.post("/quick-start", data=sent).headers["location"] == f"/fine-tunes/{number}"
        assert service.jobs.get(number).params.base_model_name == model
    page = checked(site.post("/quick-start", data={"judge": "off", "project": "1"}), 409)
    assert EN("quick.model.title") in page
    assert EN("nojudge.title") not in page


def test_a_fine_tune_can_be_started_again_with_other_settings(site: httpx.Client, service: Service) -> None:
    service.projects.create("One")
    for params in (FineTuneParams(False, None, "tiny", 7), FineTuneParams(False, None, "owner/model", 9)):
        job = service.jobs.start(1, params)
        assert EN("job.again") not in site.get(f"/fine-tunes/{job.id}").text
        service.jobs.cancel(job.id)
        page = checked(site.get(f"/fine-tunes/{job.id}"))
        link = re.search(r'id="start-again" href="([^"]+)"', page)
        assert link is not None
        form = checked(site.get(unescape(link[1])))
        assert f'value="{params.n_trials}"' in form
        assert 'value="off" checked' in form
        assert ('<option value="tiny" selected>' in form) == (params.base_model_name == "tiny")
        assert ('name="other_model" value="owner/model"' in form) == (params.base_model_name == "owner/model")


def test_the_quick_start_takes_the_judge(site: httpx.Client, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "key-of-nobody")
    assert "gemini" in site.get("/").text
    site.post("/projects", data={"name": "One"})
    key = key_in(site.get("/").text)
    for _ in range(2):
        assert site.post("/quick-start", data={"project": "1", "key": key}).headers["location"] == "/fine-tunes/1"
    assert service.jobs.get(1).params == FineTuneParams(True, "gemini", service.jobs.get(1).params.base_model_name, 20)
    site.post("/quick-start", data={"project": "1", "key": key_in(site.get("/").text)})
    assert service.jobs.page().total == 2
    assert "key-of-nobody" not in site.get("/configure").text


def test_what_the_page_showed_is_started(site: httpx.Client, service: Service, rows: bytes) -> None:
    empty, form = site.get("/").text, site.get("/configure").text
    assert '<option value="demo" selected>' in form
    for name in ("one.jsonl", "two.jsonl"):  # by somebody else, meanwhile
        site.post("/projects/first/datasets", files={"file": (name, rows)})
    sent = {"judge": "off", "base_model": "tiny", "trials": "5", "action": "start"}
    starts = [
        ("/configure", sent | {"dataset": "demo"}, None),
        ("/configure", sent | {"dataset": "1", "project": "1"}, 1),
        ("/quick-start", {"judge": "off", "dataset": field_in(empty, "dataset")}, None),
        ("/quick-start", {"judge": "off", "dataset": field_in(site.get("/").text, "dataset")}, 2),
    ]
    for path, fields, dataset in starts:
        address = site.post(path, data=fields).headers["location"]
        assert service.jobs.get(int(address.rpartition("/")[2])).dataset == dataset
    assert field_in(checked(site.post("/quick-start", data={"dataset": "1"}), 409), "dataset") == "1"
    assert '<option value="demo" selected>' in site.get("/configure", params={"dataset": "demo"}).text


def test_a_refused_file_stops_the_start(site: httpx.Client, service: Service, rows: bytes) -> None:
    part = {"hx-request": "true"}
    site.post("/projects/first/datasets", files={"file": ("good.jsonl", rows)})
    answer = site.post("/projects/1/datasets", files={"file": ("bad.jsonl", rows + BAD)}, headers=part)
    assert answer.headers["hx-trigger"] == "dataset-changed"
    assert f'<option value="" selected>{EN("configure.data.none")}</option>' in checked(answer, 422)
    asked = {"project": "1", "dataset": "", "judge": "off", "base_model": "tiny", "trials": "5"}
    assert EN("refusal.no_dataset") in checked(site.get("/estimate", params=asked))
    page = checked(site.post("/configure", data=asked | {"action": "start"}), 422)
    assert EN("refusal.no_dataset") in page
    assert '<option value="" selected>' in page
    assert service.jobs.page().total == 0


def test_answers_that_cannot_be_read_do_not_take_the_page_with_them(
    site: httpx.Client, rich: Callable[..., JobView], service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    rich()

    def deleted(*_: Any) -> Any:
        raise TrackingError("run 1 was deleted")

    monkeypatch.setattr(service.stores, "examples", deleted)
    page = checked(site.get("/fine-tunes/1"))
    assert EN("examples.unavailable") in page
    assert "run 1 was deleted" in page
    assert EN("job.cancel") in page


def test_too_many_starts(make_site: Callable[..., httpx.Client]) -> None:
    site = make_site(starts_per_minute=1)
    assert site.post("/quick-start", data={"judge": "off"}).status_code == 303
    again = site.post("/quick-start", data={"judge": "off", "project": "1"})
    assert EN("error.429") in checked(again, TooManyError.status)
    sent = {"project": "1", "judge": "off", "base_model": "tiny", "trials": "5", "action": "start"}
    assert EN("refusal.too_many_requests") in checked(site.post("/configure", data=sent), 429)


def test_cancel_and_resume(site: httpx.Client, service: Service) -> None:
    site.post("/quick-start", data={"judge": "off"})
    page = checked(site.get("/fine-tunes/1"))
    assert EN("job.cancel") in page
    assert EN("list.place", n=1) in page
    assert site.post("/fine-tunes/1/cancel").headers["location"] == "/fine-tunes/1"
    assert service.jobs.get(1).state is JobState.CANCELLED
    page = checked(site.get("/fine-tunes/1"))
    assert EN("job.resume") in page
    assert "hx-trigger" not in page  # nothing changes any more
    assert EN("error.409") in checked(site.get("/fine-tunes/1/adapter"), 409)
    site.post("/fine-tunes/1/resume")
    assert service.jobs.get(1).state is JobState.QUEUED
    assert EN("error.409") in checked(site.post("/fine-tunes/1/resume"), 409)


def test_an_upload_without_javascript(site: httpx.Client, rows: bytes) -> None:
    site.post("/projects", data={"name": "One"})
    answer = site.post("/projects/1/datasets", files={"file": ("<i>my.jsonl", rows)})
    assert (answer.status_code, answer.headers["location"]) == (303, "/datasets/1")
    page = checked(site.get("/datasets/1", headers={"accept-language": "ru"}))
    assert "&lt;i&gt;my.jsonl" in page
    assert RU("unit.rows", n=32) in page
    assert "/configure?project=1&amp;dataset=1" in page
    assert '<option value="1" selected>' in checked(site.get("/configure", params={"project": 1, "dataset": 1}))
    checked(site.get("/projects/1"))


@pytest.mark.parametrize("language", LANGUAGES)
def test_deleting_names_what_goes(site: httpx.Client, service: Service, language: str) -> None:
    words = Words(language)
    site.headers["accept-language"] = language
    project = service.projects.create(HOSTILE).id
    dataset = add_dataset(service, project, "<i>my.jsonl")
    job = add_job(service, project, JobState.COMPLETE, "<u>tuned")
    for path in (f"/datasets/{dataset}", f"/fine-tunes/{job}", f"/projects/{project}"):
        assert f'href="{path}/delete"' in checked(site.get(path))
    page = checked(site.get(f"/datasets/{dataset}/delete"))
    for text in (words("delete.used", n=1), "&lt;i&gt;my.jsonl", "&lt;u&gt;tuned", words("delete.forever")):
        assert text in page
    # Without what the page has shown, and after something has changed, nothing is deleted.
    assert words("refusal.deletion_changed") in checked(site.post(f"/projects/{project}/delete"), 409)
    digest = digest_in(checked(site.get(f"/projects/{project}/delete")))
    add_job(service, project, JobState.CANCELLED)
    page = checked(site.post(f"/projects/{project}/delete", data={"digest": digest}), 409)
    assert words("refusal.deletion_changed") in page
    answer = site.post(f"/projects/{project}/delete", data={"digest": digest_in(page)})
    assert (answer.status_code, answer.headers["location"]) == (303, "/deletions/1")
    wait_for(lambda: service.deletions.get(1).ended is not None)
    size = Shapes(words).size(service.deletions.get(1).size)
    assert words("deletion.done", size=size) in checked(site.get("/deletions/1"))
    assert "hx-get" not in checked(site.get("/deletions/1", headers={"hx-request": "true"}))
    checked(site.get(f"/datasets/{dataset}/delete"), 404)
    checked(site.post(f"/fine-tunes/{job}/delete", data={"digest": digest}), 404)


def digest_in(page: str) -> str:
    match = re.search(r'name="digest" value="([^"]+)"', page)
    assert match is not None
    return match[1]


def test_a_name_and_notes(site: httpx.Client, service: Service) -> None:
    job = add_job(service, 123)
    sent = {"name": "<b>Night", "notes": "<script>alert(1)</script>\n\nsecond"}
    assert site.post(f"/fine-tunes/{job}/edit", data=sent).headers["location"] == f"/fine-tunes/{job}"
    page = checked(site.get(f"/fine-tunes/{job}"))
    assert '<p class="notes" dir="auto">&lt;script&gt;' in page
    assert 'value="&lt;b&gt;Night"' in page
    assert EN("error.422") in checked(site.post(f"/fine-tunes/{job}/edit", data={"name": ""}), 422)


BAD = b'\n{"question": 5, "answer": "<script>alert(1)</script>"}\n{"<b>": 1}\nnot json'


def test_problems_of_an_upload_are_named(site: httpx.Client, rows: bytes, service: Service) -> None:
    site.post("/projects", data={"name": "One"})
    page = checked(site.post("/projects/1/datasets", files={"file": ("bad.jsonl", rows + BAD)}), 422)
    assert EN("report.bad", n=3, name="bad.jsonl") in page
    assert '<td class="number">41</td><td><code>question</code></td>' in page
    assert service.datasets.page(1).total == 0
    russian = {"accept-language": "ru"}
    page = checked(site.post("/projects/1/datasets", files={"file": ("bad.jsonl", rows + BAD)}, headers=russian), 422)
    assert "содержит число 5, а ожидается текст" in page
    assert re.findall('<span class="said" lang="en">.*?</span>', page) == []
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
    assert service.projects.page().total == 1


def test_an_upload_in_another_encoding(site: httpx.Client, service: Service) -> None:
    content = ("Вопрос,Ответ\r\n" + "".join(f"Вопрос {n},Ответ {n}\r\n" for n in range(20))).encode("cp1251")
    file, part = {"file": ("<b>.csv", content)}, {"hx-request": "true", "accept-language": "ru"}
    page = checked(site.post("/projects/first/datasets", files=file, data={"encoding": ""}, headers=part), 422)
    assert "data.encoding" not in page
    assert '<option value="" selected>' in page
    assert 'value="windows-1251" form="settle" checked' in page
    sent = {"project": "1", "upload": field_in(page, "upload"), "encoding": "windows-1251", "request": "0"}
    page = checked(site.post("/uploads", data=sent | {"answer": "0"}, headers=part), 422)
    assert RU("refusal.same_column") in page
    sent = sent | {"upload": field_in(page, "upload"), "answer": "1"}
    page = checked(site.post("/uploads", data=sent, headers=part), 201)
    assert RU("report.ok", name="<b>.csv") in unescape(page)
    assert service.datasets.get(1).report["sources"][0]["columns_used"] == {"question": "Вопрос", "answer": "Ответ"}
    assert RU("refusal.upload_expired") in checked(site.post("/uploads", data=sent, headers=part), 422)
    checked(site.post("/uploads", data={}), 404)
    # Also without JavaScript, and with the encoding given from the start.
    page = checked(site.post("/projects/1/datasets", files=file), 422)
    assert '<form id="settle" method="post" action="/uploads"' in page
    answer = site.post("/uploads", data=sent | {"upload": field_in(page, "upload")})
    assert (answer.status_code, answer.headers["location"]) == (303, "/datasets/2")
    assert '<input id="file-encoding" name="encoding" form="files"' in checked(site.get("/projects/1"))


def test_rows_that_are_too_long_are_asked_about(
    site: httpx.Client, service: Service, rows: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"project": "1", "dataset": "1", "judge": "off", "base_model": "tiny", "trials": "5"}
    site.post("/projects/first/datasets", files={"file": ("my.jsonl", rows)})
    assert EN("fit.busy") in checked(site.get("/configure"))
    assert EN("fit.busy") not in checked(site.get("/fit", params=asked | {"dataset": "demo"}))

    monkeypatch.setattr(service.choices, "is_here", lambda _: True)

    def measured(lengths: Lengths) -> str:
        monkeypatch.setattr(service.jobs._measurer, "measure", lambda *_: lengths)
        return unescape(checked(site.get("/fit", params=asked, headers={"accept-language": "ru"})))

    assert RU("fit.ok", n=40, longest=90, limit=1024) in measured(Lengths(40, 0, 90, 1024, {}, ["drop", "truncate"]))
    left_out = {"drop": 3, "truncate": 1}
    assert RU("fit.none") in measured(Lengths(40, 3, 2000, 1024, left_out, []))
    part = measured(Lengths(40, 3, 2000, 1024, left_out, ["drop", "truncate"]))
    assert RU("fit.long", n=3, rows=40, longest=2000, limit=1024) in part
    assert RU("fit.drop.rows", n=3) in part
    assert RU("fit.truncate.rows", n=2) in part
    assert RU("fit.truncate.also", n=1) in part
    page = checked(site.post("/configure", data=asked | {"action": "start"}), 409)
    assert EN("refusal.rows_too_long") in page
    assert 'name="overlong" value="drop"' in page
    page = checked(site.post("/quick-start", data={"project": "1", "judge": "off"}), 409)
    assert 'name="overlong" value="drop"' in page
    assert service.jobs.page().total == 0
    address = site.post("/configure", data=asked | {"action": "start", "overlong": "truncate"}).headers["location"]
    assert address == "/fine-tunes/1"
    with service.jobs._database.reading() as session:
        assert "data.overlong=truncate" in session.get_one(Job, 1).overrides


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
    address = "127.0.0.2"  # another one of this machine
    with httpx.Client(transport=httpx.HTTPTransport(local_address=address), headers=site.headers) as other:
        for _ in range(11):
            answer = other.post(site.base_url.join("/login"), data={"token": "wrong"})
        page = checked(site.get(answer.headers["location"], headers={"accept-language": "ru"}))
        assert str(RU._messages["login.wait"]).partition("{time}")[0] in page
        assert RU("login.wrong") not in page
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
    failure = "judge gemini is unavailable: no connection: <b>отказ</b>" if state is JobState.FAILED else None
    job = rich(state, judged=judged, failure=failure, **(RESULT if state is JobState.COMPLETE else {}))
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
    assert failure is None or "&lt;b&gt;отказ&lt;/b&gt;" in page
    assert words("chart.text", n=2, best=Shapes(words).score(0.7), trial=3) in unescape(page)
    assert '<th scope="col" class="number"><code title="lora.r">r</code></th>' in page
    assert "line\n" in page
    assert "100%" in page
    assert "10%" not in page
    assert HOSTILE in unescape(page)
    checked(site.get("/jobs"))


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("effect", TuningEffect)
def test_the_page_says_of_tuning_what_the_log_says(
    site: httpx.Client, rich: Callable[..., JobView], effect: TuningEffect, language: str
) -> None:
    words, f = Words(language), Shapes(Words(language))
    has_gain = not effect.startswith("no_") or effect is TuningEffect.UNCLEAR
    gone: dict[str, Any] = {} if has_gain else dict.fromkeys(("gain", "gain_low", "gain_high", "gain_examples"))
    if effect is TuningEffect.NO_TEST_ROWS:
        gone |= {"test_score": None, "baseline_score": None, "test_rows": 0}
    rich(JobState.COMPLETE, **RESULT | gone | {"verdict": effect.value})
    page = unescape(checked(site.get("/fine-tunes/1", headers={"accept-language": language})))
    said = [other for other in TuningEffect if words(f"result.{other}") in page]
    assert said == [effect]
    assert (f"{f.gain(0.05)}</dd>" in page) == has_gain
    assert (f"{f.gain(-0.01)} … {f.gain(0.11)}</dd>" in page) == has_gain
    assert (words("result.judged", n=30) in page) == has_gain
    assert ('class="higher"' in page) == (effect is TuningEffect.HIGHER)


def test_few_test_rows_are_told_before_the_start(site: httpx.Client, rows: bytes) -> None:
    site.post("/projects", data={"name": "One"})
    site.post("/projects/1/datasets", files={"file": ("few.jsonl", rows)})
    for path in ("/projects/1", "/configure?project=1", "/estimate?project=1&judge=off&base_model=tiny&trials=5"):
        assert "only 4 test rows: " in checked(site.get(path))
        assert RU.said(rows_warning(4) or "") in checked(site.get(path, headers={"accept-language": "ru"}))
    assert "test row" not in checked(site.get("/estimate?judge=off&base_model=tiny&trials=5"))  # the demo has enough


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("effect", ["higher", "lower", "no_clear_difference", "too_few_examples"])
def test_prompting_what_was_forgotten_and_other_metrics_are_told(
    site: httpx.Client, rich: Callable[..., JobView], language: str, effect: str
) -> None:
    words = Words(language)
    few_shot = FewShotView(4, 0.52, 0.2, 0.1, 0.3, effect)
    forgot = "something" if effect == "lower" else "nothing"
    forgetting = ForgettingView(forgot, 0.4, 0.3, 0.5, 32, 12, 10)
    rows = [row(0, 0.7, 1, metrics={"exact_match": 0.25}), row(1, None, state="failed")]
    rich(JobState.COMPLETE, **RESULT, few_shot=few_shot, forgetting=forgetting, rows=rows)
    page = unescape(checked(site.get("/fine-tunes/1", headers={"accept-language": language})))
    f = Shapes(words)
    assert words(f"result.few_shot.{effect}", n=4) in page
    assert words("result.few_shot.gain", gain=f.gain(0.2), low=f.gain(0.1), high=f.gain(0.3)) in page
    assert f"{words('result.few_shot', n=4)}</dt><dd>{f.score(0.52)}</dd>" in page
    assert words(f"result.forgot.{forgot}") in page
    loss = {"loss": f.gain(0.4), "low": f.gain(0.3), "high": f.gain(0.5)}
    assert words("result.forgot.numbers", after=10, count=32, before=12, **loss) in page
    assert "<code>exact_<wbr>match</code>" in page
    assert f'<td class="number">{f.score(0.25)}</td>' in page


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(("best", "reason"), [(2, "highest_score"), (0, "smaller_adapter")])
def test_the_choice_is_told(
    site: httpx.Client, rich: Callable[..., JobView], language: str, best: int, reason: str
) -> None:
    words = Words(language)
    rich(
        JobState.COMPLETE,
        judged=True,
        choice=ChoiceView(2, reason, best, 1_500_000, 3_000_000, 0.6, [2, 0], 0.0112, 32, "Winner"),
    )
    page = unescape(checked(site.get("/fine-tunes/1", headers={"accept-language": language})))
    sizes = {"size": Shapes(words).megabytes(1_500_000), "other": Shapes(words).megabytes(3_000_000)}
    assert words(f"choice.{reason}", trial=3, best=best + 1, **sizes) in page
    assert words("choice.note", n=32) in page
    assert f"<dd>{Shapes(words).probability(0.6)}</dd>" in page
    assert f"<dd>{Shapes(words).score(0.0112)}</dd>" in page
    assert "Winner" not in page
    assert page.count('class="winner"') == 1
    assert words("board.p_best") in page
    assert words("board.final") in page
    assert words("board.final.caption", n=48) in page
    assert f'<td class="number">{Shapes(words).score(0.68)}</td>' in page
    assert re.search(r'<tr id="trial-2" class="best">', page)


def test_trials_count_from_1_and_repeated_ones_once(site: httpx.Client, rich: Callable[..., JobView]) -> None:
    rich(
        JobState.RUNNING,
        trial_current=4,
        rows=[row(0, 0.5, 1), row(1, None, state="interrupted"), row(4, 0.7, 2, trial=2), row(5, None, trial=5)],
    )
    page = checked(site.get("/fine-tunes/1"))
    assert EN("job.current", trial=2) in page
    assert re.findall(r'<tr id="trial-(\d)"', page) == ["0", "4", "5"]
    assert re.findall(r'<th scope="row" class="number">(\d)', page) == ["1", "2", "5"]
    assert re.findall(r'text-anchor="middle">(\d)</text>', page) == ["1", "2", "3", "4", "5"]
    assert EN("chart.mark", trial=2, score="0.7000", interval="0.6500 … 0.7500") in unescape(page)
    assert EN("board.count") in page


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_is_done_after_the_last_trial_has_a_name_and_a_time(
    site: httpx.Client, rich: Callable[..., JobView], language: str
) -> None:
    words = Words(language)
    for stage in ("preparing", *Stage):
        rich(stage=str(stage), stage_seconds=72.0, seconds_left=None)
        page = unescape(checked(site.get("/fine-tunes/1", headers={"accept-language": language})))
        assert words(f"stage.{stage}") in page
        assert words("stage.since", time=Shapes(words).duration(72)) in page


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_base_model_is_in_chart_and_leaderboard(
    site: httpx.Client, rich: Callable[..., JobView], language: str
) -> None:
    words, f = Words(language), Shapes(Words(language))
    rich(validation_baseline=BaselineView(0.3, 0.25, 0.35, 0.4, 31.0), judged=True)
    page = unescape(checked(site.get("/fine-tunes/1/live", headers={"accept-language": language})))
    assert words("chart.base", score=f.score(0.3)) in page
    row = page[page.index('<tr id="base-model"') :].partition("</tr>")[0]
    assert all(text in row for text in (words("result.base"), f.score(0.3), f.score(0.25), f.score(0.4), f.judge(31)))
    rich()
    assert "base-model" not in checked(site.get("/fine-tunes/1/live"))


def test_a_failure_is_said_in_russian_beside_the_words_of_the_program(
    site: httpx.Client, rich: Callable[..., JobView]
) -> None:
    failure = "judge gemini is unavailable: no connection: отказ"
    rich(JobState.FAILED, failure=failure)
    page = checked(site.get("/fine-tunes/1", headers={"accept-language": "ru"}))
    assert '<span class="said">судья gemini недоступен: нет соединения: отказ</span>' in page
    assert f'<p lang="en">{failure}</p>' in page
    page = checked(site.get("/fine-tunes/1"))
    assert page.count(failure) == 1


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
