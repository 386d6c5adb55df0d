"""The page in a real browser on a real server: what a person does from the first upload to the download."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.service.pages.browsing import AXE, MILLISECONDS, NEEDS_BROWSER
from tests.service.served import Served
from tests.support.english import english_words

from lorahydra.service.pages.shapes import Shapes
from lorahydra.service.pages.words import Words

pytest.importorskip("playwright.sync_api")
pytestmark = NEEDS_BROWSER

MLFLOW = "https://mlflow.example.org"
PHONE = {"width": 360, "height": 740}
EN, RU = Words("en"), Words("ru")


@pytest.fixture
def server(make_server: Callable[..., Served], models: Path) -> Served:
    """One whose default model is the tiny one, and that has no judge."""
    keys = dict.fromkeys(("GEMINI_API_KEY", "GOOGLE_API_KEY", "GIGACHAT_CREDENTIALS", "OPENAI_API_KEY"), "")
    default = ("--set", "model=local", "--set", f"model.name_or_path={models / 'tiny'}")
    made = make_server(*default, "--mlflow-url", f"{MLFLOW}/", **keys)
    made.start()
    return made


@pytest.fixture
def open_page(chromium: Any, server: Served) -> Iterator[Callable[..., Any]]:
    """Opens pages that must not end with an error of a script or a breach of the content policy."""
    contexts, errors = [], []

    def said(message: Any) -> None:
        if "Content Security Policy" in message.text:
            errors.append(message.text)

    def make(path: str = "/", **options: Any) -> Any:
        context = chromium.new_context(**{"locale": "en-US", "viewport": {"width": 1200, "height": 900}, **options})
        context.set_default_timeout(MILLISECONDS)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", said)
        contexts.append(context)
        page.goto(f"http://127.0.0.1:{server.port}{path}")
        return page

    yield make
    for context in contexts:
        context.close()
    assert errors == []


def accessible(page: Any) -> None:
    """Axe finds no fault, not even a minor one, in light and dark; a phone cuts nothing off; Russian is Russian."""
    size = page.viewport_size
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        report = page.evaluate(f"{AXE}; axe.run()")
        assert len(report["passes"]) > 15  # it has looked
        found = [(f["id"], f["nodes"][0]["html"], f["nodes"][0]["failureSummary"]) for f in report["violations"]]
        assert found == []
    assert page.locator("html").get_attribute("lang") != "ru" or english_words(page.content()) == []
    page.emulate_media(color_scheme="light")
    page.set_viewport_size(PHONE)
    wide = "[document.documentElement, document.querySelector('dialog')].some(e => e && e.scrollWidth > e.clientWidth)"
    assert not page.evaluate(wide)
    page.set_viewport_size(size)


def tells_the_outcome(page: Any, job: dict[str, Any], words: Words) -> None:
    """The page says whether tuning helped, which trial won and how sure that is, as the API does, on a phone too."""
    assert job["verdict"] in ("higher", "lower", "no_clear_difference")
    page.get_by_text(words(f"result.{job['verdict']}")).wait_for()
    facts, shapes = page.locator("#result dl").inner_text(), Shapes(words)
    assert f"{shapes.gain(job['gain_low'])} … {shapes.gain(job['gain_high'])}" in facts
    assert facts.split()[-1] == str(job["test_rows"])
    choice = job["choice"]
    page.get_by_role("heading", name=words("choice.title")).wait_for()
    assert shapes.probability(choice["p_best"]) in page.locator("#choice dl").inner_text()
    assert (
        page.locator("#board tr.best").get_attribute("id")
        == f"trial-{choice['winner']}"
        == f"trial-{job['best_trial']}"
    )
    assert page.locator("#board .winner").inner_text().split() == ["★", words("board.winner")]
    size = page.viewport_size
    page.set_viewport_size(PHONE)
    header = page.get_by_role("columnheader", name=words("board.p_best")).bounding_box()
    assert header["x"] + header["width"] < PHONE["width"]  # it is seen without scrolling
    page.set_viewport_size(size)


def focused(page: Any) -> str:
    return str(page.evaluate("document.activeElement.id || document.activeElement.outerHTML.slice(0, 80)"))


@pytest.fixture
def files(tmp_path: Path, rows: bytes) -> Path:
    """`good.jsonl`, over the limit of ordinary requests and with two long rows, `bad.jsonl`, and `russian.csv`."""
    long = [json.dumps({"question": "Why?", "answer": "so " * 500})] * 2
    more = [json.dumps({"question": f"Why {n}? " + "so " * 60, "answer": f"Because {n}."}) for n in range(400)] + long
    (tmp_path / "good.jsonl").write_bytes(rows + b"\n" + "\n".join(more).encode())
    russian = "Вопрос;Ответ\n" + "".join(f"Как сбросить пароль {n}?;Нажмите кнопку {n}.\n" for n in range(40))
    (tmp_path / "russian.csv").write_bytes(russian.encode("cp1251"))
    (tmp_path / "bad.jsonl").write_bytes(rows + b'\n{"question": "<img src=x onerror=alert(1)>", "answer": 5}')
    return tmp_path


def test_from_upload_to_download(open_page: Callable[..., Any], server: Served, files: Path) -> None:
    page = open_page()
    accessible(page)
    page.get_by_role("link", name=EN("list.configure")).click()
    form = page.get_by_role("dialog")
    form.wait_for()
    accessible(page)

    form.get_by_label(EN("configure.model.base")).select_option("tiny")
    form.get_by_label(EN("configure.data.upload")).set_input_files(files / "bad.jsonl")
    form.get_by_text(EN("report.bad", n=1, name="bad.jsonl")).wait_for()
    assert focused(page) == "report"
    start, estimate = form.get_by_role("button", name=EN("configure.start")), form.locator("#estimate")
    estimate.get_by_text(EN("refusal.no_dataset")).wait_for()
    assert form.get_by_label(EN("configure.data.choose"), exact=True).input_value() == ""
    start.click()
    form.get_by_role("alert").filter(has_text=EN("refusal.no_dataset")).wait_for()
    form.get_by_label(EN("configure.data.upload")).set_input_files(files / "russian.csv")
    form.get_by_role("radio", name=re.compile("windows-1251")).wait_for()
    assert focused(page) == "report"
    accessible(page)
    form.get_by_role("button", name=EN("offer.convert")).click()
    form.get_by_text(EN("report.ok", name="russian.csv")).wait_for()
    estimate.get_by_text(EN("estimate.split", train=32, validation=4, test=4)).wait_for()
    held: list[Any] = []
    page.route("**/datasets", lambda route: held.append(route))
    form.get_by_label(EN("configure.data.upload")).set_input_files(files / "good.jsonl")
    form.get_by_text(EN("configure.busy")).wait_for()
    start.click()
    form.get_by_text(EN("configure.pending")).wait_for()
    held.pop().continue_()
    page.unroute("**/datasets")
    form.get_by_text(EN("report.ok", name="good.jsonl")).wait_for()
    assert server.client.get("/fine-tunes").json()["total"] == 0
    estimate.get_by_text(re.compile(r"3\d\d for training")).wait_for()
    accessible(page)

    form.get_by_label(EN("configure.judge.off")).check()
    form.get_by_label(EN("configure.trials")).fill("500")
    form.locator("#estimate").get_by_text(EN("refusal.bad_trials", fewest=5, most=100)).wait_for()
    form.get_by_role("button", name=EN("configure.start")).click()
    form.get_by_role("alert").filter(has_text=EN("refusal.bad_trials", fewest=5, most=100)).wait_for()
    assert focused(page) == "problem"
    accessible(page)
    form.get_by_label(EN("configure.trials")).fill("5")
    form.locator("#estimate").get_by_text(EN("estimate.none")).wait_for()
    form.get_by_text(re.compile("^2 of 442 rows are too long")).wait_for()
    page.keyboard.press("Enter")
    form.get_by_role("alert").filter(has_text=EN("refusal.rows_too_long")).wait_for()
    accessible(page)
    form.get_by_label(EN("fit.drop")).check()
    start.click()

    page.wait_for_url("**/fine-tunes/1")
    page.locator(".badge.running").wait_for()
    accessible(page)
    page.get_by_text(EN("list.progress", n=5, done=5)).or_(page.locator(".badge.complete")).first.wait_for()
    page.locator(".badge.complete").wait_for()  # it came without a reload
    assert page.locator("#board tbody tr[id^=trial-]").count() == 5
    page.locator("#base-model").wait_for()
    tells_the_outcome(page, server.job(1), EN)
    page.get_by_role("img", name=re.compile("Chart of 5 scores")).wait_for()
    page.get_by_role("heading", name=EN("examples.one", number=1)).wait_for()
    assert "Trial 4:" in page.locator("#log-text").inner_text()
    accessible(page)
    page.get_by_role("link", name="Русский").click()
    tells_the_outcome(page, server.job(1), RU)
    accessible(page)
    page.get_by_role("link", name="English").click()
    in_mlflow = page.get_by_role("link", name=EN("job.mlflow"), exact=True)
    assert str(in_mlflow.get_attribute("href")).startswith(f"{MLFLOW}/#/experiments/")
    page.get_by_label(EN("chat.message")).fill("Why 3?")
    page.get_by_role("button", name=EN("chat.send")).click()
    page.locator("#send:enabled").wait_for()
    page.get_by_label(EN("chat.message")).fill("And 4?")
    page.keyboard.press("Control+Enter")
    page.locator("#turns[aria-busy=false] .turn").nth(1).wait_for()
    for side in ("tuned", "untuned"):
        assert all(
            text != EN("chat.waiting") for text in page.locator(f"[data-side={side}] blockquote").all_inner_texts()
        )
    accessible(page)
    page.get_by_role("button", name=EN("chat.again")).click()
    assert page.locator(".turn").count() == 0
    with page.expect_download() as download:
        page.get_by_role("link", name=EN("job.download")).click()
    names = {Path(name).name for name in zipfile.ZipFile(download.value.path()).namelist()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= names

    page.get_by_role("link", name="My first project").click()
    page.get_by_role("link", name="tiny #1").click()
    page.wait_for_url("**/fine-tunes/1")

    # Deleting, by keyboard.
    page.locator("#delete").press("Enter")
    page.get_by_label(EN("delete.keep")).wait_for()
    page.get_by_text(EN("delete.runs", n=6)).wait_for()
    accessible(page)
    page.locator("button#delete").press("Enter")
    page.get_by_text(re.compile("^Deleted")).wait_for()  # it came without a reload
    accessible(page)
    page.get_by_role("link", name=EN("error.back")).click()
    page.get_by_text(EN("empty.title")).wait_for()
    accessible(page)


def test_a_quick_start_in_russian(open_page: Callable[..., Any], files: Path) -> None:
    page = open_page("/nothing", locale="ru-RU")
    page.get_by_role("heading", name=RU("error.404")).wait_for()
    accessible(page)
    page.get_by_role("link", name=RU("error.back")).click()
    page.get_by_role("link", name=RU("list.configure")).click()
    page.get_by_label(RU("configure.data.upload")).set_input_files(files / "bad.jsonl")
    page.get_by_text("содержит число 5, а ожидается текст").first.wait_for()
    accessible(page)
    assert page.locator(".said[lang=en]").count() == 0
    page.goto(page.url.rpartition("/configure")[0] or page.url)
    page.get_by_role("button", name=RU("list.quick")).click()
    page.get_by_role("heading", name=RU("nojudge.title")).wait_for()
    accessible(page)
    page.get_by_role("button", name=RU("nojudge.without")).click()
    page.wait_for_url("**/fine-tunes/1")
    page.get_by_text(re.compile(r"Завершено [1-9]\d? из 20 испытаний")).wait_for()
    page.get_by_role("button", name=RU("job.cancel")).click()
    page.locator(".badge.cancelled").wait_for()
    accessible(page)
    page.get_by_role("link", name=RU("job.again")).click()
    assert page.get_by_label(RU("configure.trials")).input_value() == "20"
    page.go_back()
    page.get_by_role("button", name=RU("job.resume")).click()
    page.locator(".badge.running, .badge.starting, .badge.queued").first.wait_for()
    page.get_by_role("link", name="English").click()
    page.get_by_role("heading", name=EN("chart.title")).wait_for()
    page.get_by_role("button", name=EN("job.cancel")).click()
    page.locator(".badge.cancelled").wait_for()
    page.goto(page.url.rpartition("/fine-tunes")[0])
    page.get_by_role("link", name=EN("list.configure")).wait_for()  # the language is remembered


KEY = re.compile(r"\b(?:data|evaluation|hydra|judges?|lora|model|search|tracking|training)\.[a-z_]{3,}")
"""A key of the config, which people need not know."""


def test_a_beginner_gets_from_a_file_to_a_chat(open_page: Callable[..., Any], server: Served, files: Path) -> None:
    page, clicks = open_page(locale="ru-RU"), 0

    def press(role: str, name: str) -> None:
        nonlocal clicks
        seen = page.locator("h1, h2, p, dd, dt, label, legend, li, td, th").all_inner_texts()
        assert KEY.findall(" ".join(seen)) == []
        page.get_by_role(role, name=RU(name), exact=True).click()
        clicks += 1

    page.get_by_label(RU("first.file")).set_input_files(files / "russian.csv")
    press("button", "dataset.check")
    page.get_by_role("radio", name=re.compile("windows-1251")).wait_for()
    press("button", "offer.convert")
    page.wait_for_url("**/datasets/1")
    accessible(page)
    press("link", "dataset.use")
    press("button", "configure.start")
    page.wait_for_url("**/fine-tunes/1")
    page.locator("#send").wait_for()  # there is an adapter after the first trial
    page.get_by_label(RU("chat.message")).fill("Как сбросить пароль 3?")
    press("button", "chat.send")
    page.locator("#turns[aria-busy=false] .turn").wait_for()
    assert page.locator("[data-side=tuned] blockquote").inner_text() not in ("", RU("chat.waiting"))
    assert RU("chat.failed") not in page.locator("#turns").inner_text()
    assert clicks <= 8
    server.post("/fine-tunes/1/cancel", {})


def test_the_dialog_by_keyboard(open_page: Callable[..., Any], server: Served) -> None:
    page = open_page()
    opener = page.get_by_role("link", name=EN("list.configure"))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    for _ in range(10):
        if opener.evaluate("e => e === document.activeElement"):
            break
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.get_by_role("dialog").wait_for()
    assert focused(page) == "configure-title"
    seen = []
    for _ in range(24):
        page.keyboard.press("Tab")
        seen.append(focused(page))
        assert page.evaluate("document.activeElement === document.body || !!document.activeElement.closest('dialog')")
    assert {"dataset", "upload-file", "base-model", "trials"} <= set(seen)
    page.keyboard.press("Escape")
    page.get_by_role("dialog").wait_for(state="hidden")
    assert opener.evaluate("e => e === document.activeElement")

    page.keyboard.press("Enter")
    page.get_by_role("dialog").wait_for()
    for field, keys in (("base-model", "tiny"), ("trials", "ControlOrMeta+a 6")):
        while focused(page) != field:
            page.keyboard.press("Tab")
        for key in keys.split() if field == "trials" else keys:
            page.keyboard.press(key)
    page.keyboard.press("Enter")
    page.wait_for_url("**/fine-tunes/1")
    params = server.job(1)["params"]
    assert (params["base_model_name"], params["n_trials"], params["use_llm_judge"]) == ("tiny", 6, False)
    server.post("/fine-tunes/1/cancel", {})


def test_without_javascript(open_page: Callable[..., Any], server: Served, files: Path) -> None:
    page = open_page(java_script_enabled=False)
    page.get_by_role("link", name=EN("list.configure")).click()
    page.get_by_label(EN("configure.data.upload")).set_input_files(files / "russian.csv")
    page.get_by_role("button", name=EN("dataset.check")).click()
    page.get_by_label(EN("offer.request")).select_option("Вопрос")
    page.get_by_role("button", name=EN("offer.convert")).click()
    page.get_by_text(EN("report.ok", name="russian.csv")).wait_for()
    page.get_by_role("link", name=EN("dataset.use")).click()
    page.get_by_label(EN("configure.model.base")).select_option("tiny")
    page.get_by_label(EN("configure.trials")).fill("7")
    page.get_by_role("button", name=EN("estimate.again")).click()
    page.get_by_label(EN("configure.trials")).wait_for()
    assert page.get_by_label(EN("configure.trials")).input_value() == "7"
    page.get_by_role("button", name=EN("configure.start")).click()
    page.wait_for_url("**/fine-tunes/1")
    assert server.job(1)["dataset_name"] == "russian.csv"
    page.get_by_role("button", name=EN("job.cancel")).click()
    server.wait_for_state(1, "cancelled")
    page.reload()
    page.locator(".badge.cancelled").wait_for()
    page.get_by_role("link", name="russian.csv").click()
    page.get_by_role("link", name=EN("delete.title.dataset")).click()
    page.get_by_text(EN("delete.used", n=1)).wait_for()
    page.get_by_role("button", name=EN("delete.do")).click()
    page.wait_for_url("**/deletions/1")
    assert server.client.get("/fine-tunes/1").status_code == 404


def test_a_server_that_went_away_is_told(open_page: Callable[..., Any], server: Served) -> None:
    page = open_page()
    page.get_by_role("button", name=EN("list.quick")).click()
    page.get_by_role("button", name=EN("nojudge.without")).click()
    page.wait_for_url("**/fine-tunes/1")
    lost = page.get_by_text(EN("base.lost"))
    server.kill()
    lost.wait_for()
    server.start()
    lost.wait_for(state="hidden")
    page.get_by_role("button", name=EN("job.cancel")).click()
    page.locator(".badge.cancelled").wait_for()
