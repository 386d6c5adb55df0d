"""Routes by which fine-tuned models answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import anyio
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from lorahydra.errors import LorahydraError
from lorahydra.service.addresses import API
from lorahydra.service.api import ALWAYS, Number, Served, refusals
from lorahydra.service.bodies import GenerateBody, Turn
from lorahydra.service.errors import InvalidError, ServiceRefusal
from lorahydra.service.service import Service
from lorahydra.service.views import Answer

__all__ = ["STREAM", "EventStream", "Question", "Replies", "ask", "begin", "events", "router"]

EVENT = {
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["data"],
}
STREAM = {"description": "The answer", "content": {"text/event-stream": {"itemSchema": EVENT}}}
"""An answer that is streamed, as OpenAPI describes the events that FastAPI itself sends."""
T = TypeVar("T")

Load = Annotated[
    bool, Query(description="False only starts the process that will load it, which takes most of the time.")
]

router = APIRouter(prefix=API, responses=refusals(*ALWAYS, 415))


@dataclass(frozen=True)
class Question:
    """What a model is asked."""

    turns: Sequence[Turn]
    max_new_tokens: int | None = None
    stop: Sequence[str] = ()
    """Texts before which the answer ends."""
    tuned: bool = True
    """False asks the base model."""


class Replies:
    """The replies to a question, of which the first has come; closing them stops the answer."""

    def __init__(self, first: dict[str, Any], others: AsyncGenerator[dict[str, Any]]) -> None:
        self._first: dict[str, Any] | None = first
        self._others = others

    def __aiter__(self) -> Replies:
        return self

    async def __anext__(self) -> dict[str, Any]:
        first, self._first = self._first, None
        return await anext(self._others) if first is None else first

    async def aclose(self) -> None:
        """Stop the answer."""
        await self._others.aclose()


class EventStream(StreamingResponse):
    """Server-sent events made of replies, which are closed as soon as the client has gone."""

    media_type = "text/event-stream"

    def __init__(self, source: AsyncGenerator[str], replies: Replies) -> None:
        super().__init__(source)
        self._source, self._replies = source, replies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            with anyio.CancelScope(shield=True):
                await self._source.aclose()
                await self._replies.aclose()


@router.post("/fine-tunes/{job_id:int}/generate", responses={**refusals(404, 409, 429), 200: STREAM})
async def generate(request: Request, job_id: Number, body: GenerateBody, service: Served) -> Answer:
    """The answer of the best adapter of a fine-tune, or of its base model.

    With `stream`, events `text` have what is new of the answer, the event `answer` has all of it, and `error` says why
    there is none.
    """
    question = Question(body.messages, body.max_new_tokens, tuned=body.tuned)
    if body.stream:
        replies = await begin(request, service, job_id, question)
        return EventStream(events(replies, str), replies)  # type: ignore[return-value]
    return Answer(**await ask(request, service, job_id, question))


@router.post("/fine-tunes/{job_id:int}/prepare", status_code=204, responses=refusals(404, 409))
async def prepare(job_id: Number, service: Served, load: Load = True) -> Response:
    """Load the model of a fine-tune, so that its first answer comes at once."""
    place = await run_in_threadpool(_place, service, job_id)
    await (service.answering.prepare(*place) if load else service.answering.expect())
    return Response(status_code=204)


async def ask(request: Request, service: Service, job_id: int, question: Question) -> dict[str, Any]:
    """The whole answer of a fine-tuned model or of its base model, with the fields of `Answer`.

    Raises:
        LorahydraError: There is none.
    """
    replies = await begin(request, service, job_id, question)
    async with aclosing(replies):

        async def last() -> dict[str, Any]:
            return [reply async for reply in replies][-1]

        return await _while_connected(request, last())


async def begin(request: Request, service: Service, job_id: int, question: Question) -> Replies:
    """Ask, and wait for the first reply, so that what cannot be answered is refused with its status.

    Raises:
        LorahydraError: There is no answer.
    """
    if question.turns[-1].role == "assistant":
        raise InvalidError("the last message is the assistant's, which leaves nothing to answer", "nothing_to_answer")
    place = await run_in_threadpool(_place, service, job_id)
    asked = {
        "messages": [turn.model_dump() for turn in question.turns],
        "max_new_tokens": question.max_new_tokens,
        "until": question.stop,
        "tuned": question.tuned,
    }
    replies = service.answering.answer(*place, asked)

    async def first() -> dict[str, Any]:
        return await anext(replies)

    return Replies(await _while_connected(request, first()), replies)


def _place(service: Service, job_id: int) -> tuple[Path, Path]:
    """The adapter of a fine-tune, and the folder of the fine-tune."""
    job = service.jobs.get(job_id)
    return service.stores.adapter(job), Path(job.folder)


async def _while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client goes: others wait for their turn.

    Raises:
        ServiceRefusal: It has gone.
    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise ServiceRefusal("nobody waits for the answer any more", "disconnected")
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


async def events(replies: Replies, said: Callable[[str], str]) -> AsyncGenerator[str]:
    """An answer as server-sent events; `said` makes a line for the reader of an error's."""
    async with aclosing(replies):
        try:
            async for reply in replies:
                kind = "answer" if "answer" in reply else "text"
                yield f"event: {kind}\ndata: {json.dumps(reply)}\n\n"
        except LorahydraError as error:
            refusal = {"detail": said(str(error)), "code": getattr(error, "code", "unavailable")}
            yield f"event: error\ndata: {json.dumps(refusal)}\n\n"
