"""Routes by which fine-tuned models answer: lorahydra's own, and those that clients of OpenAI's API use."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from lorahydra.errors import LorahydraError
from lorahydra.service.api import ALWAYS, Number, Served, refusals
from lorahydra.service.bodies import ChatBody, GenerateBody, Turn
from lorahydra.service.errors import InvalidError, NotFoundError
from lorahydra.service.guard import API, OPENAI
from lorahydra.service.service import Service
from lorahydra.service.supervisor import job_study
from lorahydra.service.views import Answer

__all__ = ["ask", "router"]

MODELS = 1000
"""Fine-tunes that are listed as models."""
EVENT = {
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["data"],
}
STREAM = {"description": "The answer", "content": {"text/event-stream": {"itemSchema": EVENT}}}
"""An answer that is streamed, as OpenAPI describes the events that FastAPI itself sends."""

Load = Annotated[
    bool, Query(description="False only starts the process that will load it, which takes most of the time.")
]

router = APIRouter(responses=refusals(*ALWAYS, 415))


Replies = AsyncGenerator[dict[str, Any], None]


class _Events(StreamingResponse):
    """Server-sent events, whose source is closed as soon as the client has gone."""

    media_type = "text/event-stream"

    def __init__(self, source: AsyncGenerator[str, None]) -> None:
        super().__init__(source)
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            with anyio.CancelScope(shield=True):
                await self._source.aclose()


@router.post(f"{API}/fine-tunes/{{job_id:int}}/generate", responses={**refusals(404, 409, 429), 200: STREAM})
async def generate(job_id: Number, body: GenerateBody, service: Served) -> Answer:
    """The answer of the best adapter of a fine-tune, or of its base model.

    With `stream`, events `text` have what is new of the answer, the event `answer` has all of it, and `error` says why
    there is none.
    """
    asked = (service, job_id, body.messages, body.max_new_tokens)
    if body.stream:
        return _Events(_events(await _replies(*asked, tuned=body.tuned)))  # type: ignore[return-value]
    return Answer(**await ask(*asked, tuned=body.tuned))


@router.post(f"{API}/fine-tunes/{{job_id:int}}/prepare", status_code=204, responses=refusals(404, 409))
async def prepare(job_id: Number, service: Served, load: Load = True) -> Response:
    """Load the model of a fine-tune, so that its first answer comes at once."""
    place = await run_in_threadpool(_place, service, job_id)
    await (service.answering.prepare(*place) if load else service.answering.expect())
    return Response(status_code=204)


@router.get(f"{OPENAI}/models")
def list_models(service: Served) -> dict[str, Any]:
    """The fine-tunes that can be asked, as OpenAI's API lists models."""
    jobs = [job for job in service.jobs.page(limit=MODELS).items if job.has_adapter]
    models = [
        {"id": job.study, "object": "model", "created": int(job.created.timestamp()), "owned_by": job.project_name}
        for job in jobs
    ]
    return {"object": "list", "data": models}


@router.post(f"{OPENAI}/chat/completions", responses={**refusals(404, 409, 429), 200: STREAM})
async def complete_chat(body: ChatBody, service: Served) -> Any:
    """The answer of the best adapter of a fine-tune, as OpenAI's API gives it; `model` is the name of its study."""
    _, _, number = body.model.rpartition("-")
    if not number.isdecimal() or job_study(int(number[:10])) != body.model:
        raise NotFoundError(f"model {body.model[:100]} does not exist: GET {OPENAI}/models lists them")
    limit = body.max_completion_tokens or body.max_tokens
    asked = (service, int(number), body.turns, limit)
    common = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": body.model}
    if body.stream:
        with_usage = body.stream_options is not None and body.stream_options.include_usage
        return _Events(_chunks(await _replies(*asked, tuned=True), common, with_usage))
    last = await ask(*asked, tuned=True)
    message = {"role": "assistant", "content": last["answer"]}
    choice = {"index": 0, "message": message, "finish_reason": _finish(last), "logprobs": None}
    return {**common, "object": "chat.completion", "choices": [choice], "usage": _usage(last)}


def _place(service: Service, job_id: int) -> tuple[Path, Path]:
    """The adapter of a fine-tune, and the folder of the fine-tune."""
    job = service.jobs.get(job_id)
    return service.stores.adapter(job), Path(job.folder)


async def ask(
    service: Service, job_id: int, turns: Sequence[Turn], limit: int | None, *, tuned: bool
) -> dict[str, Any]:
    """The whole answer of a fine-tuned model or of its base model, with the fields of `Answer`."""
    async with aclosing(await _replies(service, job_id, turns, limit, tuned=tuned)) as replies:
        return [reply async for reply in replies][-1]


async def _replies(service: Service, job_id: int, turns: Sequence[Turn], limit: int | None, *, tuned: bool) -> Replies:
    """The replies, of which the first has come, so that what cannot be answered is refused with its status."""
    if turns[-1].role == "assistant":
        raise InvalidError("the last message is the assistant's, which leaves nothing to answer")
    place = await run_in_threadpool(_place, service, job_id)
    question = {"messages": [turn.model_dump() for turn in turns], "max_new_tokens": limit, "tuned": tuned}
    replies = service.answering.answer(*place, question)
    first = await anext(replies)

    async def all_of_them() -> Replies:
        async with aclosing(replies):
            yield first
            async for reply in replies:
                yield reply

    return all_of_them()


async def _events(replies: Replies) -> AsyncGenerator[str, None]:
    async with aclosing(replies):
        try:
            async for reply in replies:
                kind = "answer" if "answer" in reply else "text"
                yield f"event: {kind}\ndata: {json.dumps(reply)}\n\n"
        except LorahydraError as error:
            yield f"event: error\ndata: {json.dumps({'detail': str(error)})}\n\n"


async def _chunks(replies: Replies, common: dict[str, Any], with_usage: bool) -> AsyncGenerator[str, None]:
    """The answer in the chunks of OpenAI's API."""

    def chunk(delta: dict[str, str], finish: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return _data({**common, "object": "chat.completion.chunk", "choices": [choice]})

    async with aclosing(replies):
        yield chunk({"role": "assistant", "content": ""})
        try:
            async for reply in replies:
                if "answer" not in reply:
                    yield chunk({"content": reply["text"]})
                    continue
                yield chunk({}, _finish(reply))
                if with_usage:
                    yield _data({**common, "object": "chat.completion.chunk", "choices": [], "usage": _usage(reply)})
        except LorahydraError as error:
            yield _data({"error": {"message": str(error), "type": "server_error"}})
        yield "data: [DONE]\n\n"


def _data(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"


def _finish(reply: dict[str, Any]) -> str:
    return "stop" if reply["is_complete"] else "length"


def _usage(reply: dict[str, Any]) -> dict[str, int]:
    prompt, completion = reply["prompt_tokens"], reply["tokens"]
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
