"""The chat on a fine-tune's page."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool

from lorahydra.errors import LorahydraError
from lorahydra.service.answers import EventStream, Question, ask, begin, events
from lorahydra.service.api import Number, Served
from lorahydra.service.bodies import GenerateBody, Turn
from lorahydra.service.errors import NotFoundError, ServiceRefusal, json_answer
from lorahydra.service.pages.forms import Sent
from lorahydra.service.pages.rendering import render, words_of
from lorahydra.service.pages.routes import NO_CHAT, study

__all__ = ["router"]

router = APIRouter(include_in_schema=False, default_response_class=Response)


@router.get("/fine-tunes/{job_id}/chat")
def chat_part(request: Request, job_id: Number, service: Served) -> Response:
    """The part with the chat."""
    return render(request, "_chat.html", {"job": service.jobs.get(job_id), "chat": NO_CHAT})


@router.post("/fine-tunes/{job_id}/chat")
async def chat(request: Request, job_id: Number, service: Served, sent: Sent) -> Response:
    """Ask the fine-tuned model and its base model one question; with scripts, the page follows the answers."""
    message = str(sent.get("message", "")).strip()
    said: dict[str, Any] = {**NO_CHAT, "message": message}
    try:
        for side in ("tuned", "untuned") if message else ():
            question = Question([Turn(role="user", content=message)], tuned=side == "tuned")
            said[side] = (await ask(request, service, job_id, question))["answer"]
    except NotFoundError:
        raise
    except LorahydraError as error:
        said |= {"problem": str(error), "tuned": None}
    return await run_in_threadpool(study, request, service, job_id, 0, said)


@router.post("/fine-tunes/{job_id}/answer")
async def answer(request: Request, job_id: Number, body: GenerateBody, service: Served) -> Response:
    """The answer of one of the two models as it grows; what goes wrong is said in the reader's language."""
    words = words_of(request)

    def said(line: str) -> str:
        return words.said(line) or line

    try:
        replies = await begin(request, service, job_id, Question(body.messages, tuned=body.tuned))
    except ServiceRefusal as refusal:
        return json_answer(request.url.path, refusal.status_code, said(refusal.detail), refusal.code, refusal.headers)
    except LorahydraError as error:
        return json_answer(request.url.path, 503, said(str(error)), "unavailable")
    return EventStream(events(replies, said), replies)
