"""Fine-tuned models that answer over HTTP: the API's route, OpenAI's, streams, and the process behind them."""

from __future__ import annotations

import asyncio
import html
import json
import re
import shutil
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from sqlalchemy import update
from tests.support.waiting import SECONDS, wait_for

from lorahydra.inference.adapted_model import conversations, open_adapter
from lorahydra.service.access import Access
from lorahydra.service.answering import Answering
from lorahydra.service.database import Job
from lorahydra.service.errors import ConflictError
from lorahydra.service.pages.shapes import plain
from lorahydra.service.service import Service
from lorahydra.service.views import FineTuneParams, JobState

JSON = {"Content-Type": "application/json"}
QUESTION = [{"role": "user", "content": "What is one and one?"}]
PROGRAM = "lorahydra.inference.model_process"


@pytest.fixture
def job(service: Service, tiny_adapter: Path) -> int:
    """A fine-tune with an adapter."""
    return add_job(service, tiny_adapter)


def add_job(service: Service, adapter: Path) -> int:
    job = service.jobs.start(123, FineTuneParams(use_llm_judge=False, base_model_name="tiny"))
    shutil.copytree(adapter, Path(job.folder) / "outputs" / job.study / "best")
    with service.jobs._database.changing() as session:
        session.execute(update(Job).where(Job.id == job.id).values(best_trial=0, state=JobState.COMPLETE, ended=1.0))
    return job.id


def expected(adapter: Path, **options: Any) -> str:
    with open_adapter(adapter, device="cpu") as model:
        return model.answer(conversations([QUESTION[0]["content"]]), **options)[0]


def model_processes() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if PROGRAM in " ".join(child.cmdline())]


def events(response: httpx.Response) -> list[tuple[str, dict[str, Any]]]:
    blocks = [
        dict(line.split(": ", 1) for line in block.splitlines()) for block in response.text.split("\n\n") if block
    ]
    return [(block["event"], json.loads(block["data"])) for block in blocks]


def test_a_model_answers_as_in_its_trials(client: httpx.Client, service: Service, job: int, tiny_adapter: Path) -> None:
    path = f"/fine-tunes/{job}/generate"
    assert client.post(f"/fine-tunes/{job}/prepare", params={"load": False}).status_code == 204
    [started] = model_processes()
    answer = client.post(path, json={"messages": QUESTION}).json()
    assert answer["answer"] == expected(tiny_adapter)
    assert model_processes() == [started]
    assert answer["tokens"] > 0 < answer["prompt_tokens"]
    untuned = client.post(path, json={"messages": QUESTION, "tuned": False, "max_new_tokens": 3}).json()
    assert untuned["answer"] == expected(tiny_adapter, tuned=False, max_new_tokens=3)
    assert (untuned["tokens"], untuned["is_complete"]) == (3, False)
    streamed = events(client.post(path, json={"messages": QUESTION, "stream": True}))
    *parts, (kind, last) = streamed
    assert kind == "answer"
    assert last == answer
    assert {kind for kind, _ in parts} == {"text"}
    assert len(parts) > 1
    assert "".join(part["text"] for _, part in parts).strip() == last["answer"]

    # An answer that nobody reads is stopped, and the next question does not wait for it.
    long = {"messages": QUESTION, "max_new_tokens": 100_000}
    with client.stream("POST", path, json=long | {"stream": True}) as response:
        next(response.iter_text())
    with pytest.raises(httpx.ReadTimeout):
        client.post(path, json=long, timeout=0.5)
    wait_for(lambda: service.answering._waiting == 0)
    half = client.post(
        path, content=rb'{"messages": [{"role": "user", "content": "\ud83d"}], "max_new_tokens": 2}', headers=JSON
    )
    assert half.json()["tokens"] == 2, "half of a character is no reason to fail"

    ask_by_openais_client(str(client.base_url).removesuffix("/api/v1/"), tiny_adapter)

    # Without scripts, the page's form asks both models.
    form = client.base_url.copy_with(raw_path=f"/fine-tunes/{job}/chat".encode())
    page = client.post(form, data={"message": QUESTION[0]["content"]})
    shown = [
        html.unescape(text).strip() for text in re.findall(r"<blockquote[^>]*>(.*?)</blockquote>", page.text, re.S)
    ]
    both = [plain(expected(tiny_adapter, tuned=tuned)) for tuned in (True, False)]
    assert shown[:3] == [QUESTION[0]["content"], *both]

    # The process is killed in the middle of an answer: that is said, in the reader's language, and another one is
    # started.
    [process] = model_processes()
    followed = client.base_url.copy_with(raw_path=f"/fine-tunes/{job}/answer".encode())
    with client.stream("POST", followed, json=long, headers={"Accept-Language": "ru"}) as response:
        lines = response.iter_lines()
        next(lines)
        process.kill()
        assert (
            "из-за нехватки памяти" in json.loads([line for line in lines if line][-1].removeprefix("data: "))["detail"]
        )
    process.wait()
    assert client.post(f"/fine-tunes/{job}/prepare").status_code == 204
    assert client.post(path, json={"messages": QUESTION}).json() == answer

    # A fine-tune that is deleted leaves no model in memory.
    [process] = model_processes()
    assert client.delete(f"/fine-tunes/{job}").status_code < 300
    process.wait(SECONDS)


def ask_by_openais_client(base: str, adapter: Path) -> None:
    with openai.OpenAI(base_url=f"{base}/v1", api_key="any", max_retries=0) as model:
        [listed] = model.models.list().data
        whole = model.chat.completions.create(model=listed.id, messages=QUESTION, temperature=0.7)  # type: ignore[arg-type]
        parts = model.chat.completions.create(
            model=listed.id,
            messages=[{"role": "user", "content": [{"type": "text", "text": QUESTION[0]["content"]}]}],
            stream=True,
            stream_options={"include_usage": True},
            max_tokens=2,
        )
        *chunks, usage = list(parts)
        until = model.chat.completions.create(model=listed.id, messages=QUESTION, stop=["nobody says this", " "])  # type: ignore[arg-type]
        with pytest.raises(openai.NotFoundError) as unknown:
            model.chat.completions.create(model="gpt-4", messages=QUESTION)  # type: ignore[arg-type]
        with pytest.raises(openai.BadRequestError, match="logprobs is not supported"):
            model.chat.completions.create(model=listed.id, messages=QUESTION, logprobs=True)  # type: ignore[arg-type]
        with pytest.raises(openai.UnprocessableEntityError, match="the model has room for 2048"):
            model.chat.completions.create(model=listed.id, messages=[{"role": "user", "content": "one " * 5000}])
        assert model.models.retrieve(listed.id) == listed
    assert (unknown.value.code, unknown.value.type) == ("model_not_found", "invalid_request_error")
    assert until.choices[0].message.content == expected(adapter).partition(" ")[0]
    assert until.choices[0].finish_reason == "stop"
    assert whole.choices[0].message.content == expected(adapter)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected(adapter, max_new_tokens=2)
    assert chunks[-1].choices[0].finish_reason == "length"
    assert usage.usage is not None
    assert usage.usage.completion_tokens == 2


def test_what_cannot_be_answered(client: httpx.Client, service: Service, job: int, tiny_adapter: Path) -> None:
    path = f"/fine-tunes/{job}/generate"

    def refused(body: Any, path: str = path) -> tuple[int, str]:
        answer = client.post(path, json=body)
        return answer.status_code, answer.json()["code"]

    assert refused({"messages": []}) == (422, "invalid")
    assert refused({"messages": [{"role": "pirate", "content": "x"}]}) == (422, "invalid")
    assert refused({"messages": [*QUESTION, {"role": "assistant", "content": "Two"}]}) == (422, "nothing_to_answer")
    assert refused({"messages": QUESTION, "max_new_tokens": 0}) == (422, "invalid")
    assert refused({"messages": QUESTION}, "/fine-tunes/99/generate") == (404, "fine_tune_not_found")
    without = service.jobs.start(123, FineTuneParams(use_llm_judge=False, base_model_name="tiny"))
    assert refused({"messages": QUESTION}, f"/fine-tunes/{without.id}/generate") == (409, "no_adapter")
    broken = add_job(service, tiny_adapter)
    (service.stores.adapter(service.jobs.get(broken)) / "adapter_config.json").write_text("{")
    assert refused({"messages": QUESTION}, f"/fine-tunes/{broken}/generate") == (503, "unavailable")
    assert model_processes() == [], "a model that cannot be loaded also takes the place of the one before"


def test_refusals_of_openais_routes_have_its_form(make_client: Callable[..., httpx.Client]) -> None:
    client = make_client(Access(token="secret"))
    base = str(client.base_url).removesuffix("/api/v1/")
    known = {"Authorization": "Bearer secret"}
    body = {"model": "fine-tune-1", "messages": QUESTION}
    for status, code, request in (
        (401, "unauthorized", {"json": body}),
        (403, "cross_site", {"json": body, "headers": known | {"Origin": "https://evil.example"}}),
        (404, "fine_tune_not_found", {"json": body, "headers": known}),
        (413, "too_large", {"json": {**body, "user": "x" * (1 << 22)}, "headers": known}),
        (415, "unsupported_media_type", {"content": "x", "headers": known}),
        (422, "invalid", {"json": {}, "headers": known}),
        (400, "unsupported_parameter", {"json": {**body, "tools": [{}]}, "headers": known}),
    ):
        answer = client.post(f"{base}/v1/chat/completions", **request)  # type: ignore[arg-type]
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (status, code)
        assert (error["type"], bool(error["message"])) == ("invalid_request_error", True)


async def last_of(replies: AsyncGenerator[dict[str, Any], None]) -> dict[str, Any]:
    return [reply async for reply in replies][-1]


def test_memory_is_given_back_when_nobody_asks(tiny_adapter: Path, tmp_path: Path) -> None:
    question = {"messages": QUESTION, "max_new_tokens": 2}

    async def ask_and_wait() -> None:
        answering = Answering(idle_seconds=0)
        assert (await last_of(answering.answer(tiny_adapter, tmp_path, question)))["tokens"] == 2
        [process] = model_processes()
        await asyncio.to_thread(process.wait, SECONDS)

    asyncio.run(ask_and_wait())


def test_a_question_that_waited_until_its_fine_tune_was_deleted(tmp_path: Path) -> None:
    async def ask() -> None:
        with pytest.raises(ConflictError, match="deleted meanwhile"):
            await last_of(Answering().answer(tmp_path / "gone" / "best", tmp_path / "gone", {"messages": QUESTION}))

    asyncio.run(ask())
