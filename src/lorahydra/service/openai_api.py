"""Routes by which clients of OpenAI's API ask fine-tuned models; refusals have its form too."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field, StringConstraints

from lorahydra.errors import LorahydraError
from lorahydra.service.addresses import OPENAI
from lorahydra.service.answers import STREAM, EventStream, Question, Replies, ask, begin
from lorahydra.service.api import ALWAYS, Served
from lorahydra.service.bodies import LARGEST, MOST_TURNS, Text, Turn
from lorahydra.service.errors import NotFoundError, ServiceRefusal, openai_error
from lorahydra.service.service import Service
from lorahydra.service.views import JobView

__all__ = ["router"]

MODELS = 1000
"""Fine-tunes that are listed as models."""
MOST_STOPS = 4


class OpenAIError(BaseModel):
    """Why a request was not fulfilled."""

    message: str
    type: str
    param: str | None
    code: str


class OpenAIRefusal(BaseModel):
    """A refusal as OpenAI's API sends it."""

    error: OpenAIError


def _refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": OpenAIRefusal} for status in statuses}


router = APIRouter(prefix=OPENAI, responses=_refusals(*ALWAYS))


class _TextPart(BaseModel):
    type: Literal["text"]
    text: Text


class ChatTurn(BaseModel):
    """A message as OpenAI's clients send it."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[_TextPart]


class StreamOptions(BaseModel):
    """What a stream has beside the answer."""

    include_usage: bool = False


StopText = Annotated[Text, StringConstraints(min_length=1, max_length=200)]
Limit = Annotated[int, Field(ge=1, le=LARGEST)]


class ChatBody(BaseModel):
    """What OpenAI's clients send.

    Answers are the most likely ones, as in the trials, so `temperature` and other settings of sampling change nothing.
    What would make another kind of answer is refused.
    """

    model: Annotated[str, Field(max_length=200)]
    """Name of a fine-tune's study."""
    messages: Annotated[list[ChatTurn], Field(min_length=1, max_length=MOST_TURNS)]
    max_completion_tokens: Limit | None = None
    max_tokens: Limit | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=MOST_STOPS)] | None = None
    """Texts before which the answer ends."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    """1"""
    logprobs: bool | None = None
    """false"""
    tools: list[Any] | None = None
    """Empty, as `functions`."""
    functions: list[Any] | None = None
    response_format: dict[str, Any] | None = None
    """Of type `text`"""

    def require_supported(self) -> None:
        """Refuse what would make another kind of answer.

        Raises:
            ServiceRefusal: It was asked for.
        """
        kind = (self.response_format or {}).get("type", "text")
        asked = {
            "n": self.n not in (None, 1),
            "logprobs": self.logprobs,
            "tools": self.tools,
            "functions": self.functions,
            "response_format": kind != "text",
        }
        if name := next((name for name, is_asked in asked.items() if is_asked), None):
            raise ServiceRefusal(f"{name} is not supported: an answer is one plain text", "unsupported_parameter")

    def question(self) -> Question:
        """The same as fine-tuned models are asked."""
        turns = [
            Turn(
                role="system" if turn.role == "developer" else turn.role,
                content=turn.content if isinstance(turn.content, str) else "".join(part.text for part in turn.content),
            )
            for turn in self.messages
        ]
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return Question(turns, self.max_completion_tokens or self.max_tokens, stop)


@router.get("/models")
def list_models(service: Served) -> dict[str, Any]:
    """The fine-tunes that can be asked, as OpenAI's API lists models."""
    jobs = [job for job in service.jobs.page(limit=MODELS).items if job.has_adapter]
    return {"object": "list", "data": [_model(job) for job in jobs]}


@router.get("/models/{model}", responses=_refusals(404))
def get_model(model: str, service: Served) -> dict[str, Any]:
    """One fine-tune as a model."""
    return _model(service.jobs.get(_number(model, service)))


@router.post("/chat/completions", responses={**_refusals(404, 409, 415, 429), 200: STREAM})
async def complete_chat(request: Request, body: ChatBody, service: Served) -> Any:
    """The answer of the best adapter of a fine-tune, as OpenAI's API gives it; `model` is the name of its study."""
    number, question = _number(body.model, service), body.question()
    body.require_supported()
    common = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": body.model}
    if body.stream:
        with_usage = body.stream_options is not None and body.stream_options.include_usage
        replies = await begin(request, service, number, question)
        return EventStream(_chunks(replies, common, with_usage), replies)
    last = await ask(request, service, number, question)
    message = {"role": "assistant", "content": last["answer"]}
    choice = {"index": 0, "message": message, "finish_reason": _finish(last), "logprobs": None}
    return {**common, "object": "chat.completion", "choices": [choice], "usage": _usage(last)}


def _number(model: str, service: Service) -> int:
    """The id of a fine-tune by the name of its study."""
    number = service.jobs.find(model)
    if number is None:
        raise NotFoundError(f"model {model[:100]} does not exist: GET {OPENAI}/models lists them", "model_not_found")
    return number


def _model(job: JobView) -> dict[str, Any]:
    return {"id": job.study, "object": "model", "created": int(job.created.timestamp()), "owned_by": job.project_name}


async def _chunks(replies: Replies, common: dict[str, Any], with_usage: bool) -> AsyncGenerator[str]:
    """The answer in the chunks of OpenAI's API."""

    def chunk(delta: dict[str, str], finish: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return _data({**common, "object": "chat.completion.chunk", "choices": [choice]})

    sent = 0
    async with aclosing(replies):
        yield chunk({"role": "assistant", "content": ""})
        try:
            async for reply in replies:
                if "answer" not in reply:
                    sent += len(reply["text"])
                    yield chunk({"content": reply["text"]})
                    continue
                if rest := reply["answer"][sent:]:
                    yield chunk({"content": rest})
                yield chunk({}, _finish(reply))
                if with_usage:
                    yield _data({**common, "object": "chat.completion.chunk", "choices": [], "usage": _usage(reply)})
        except LorahydraError as error:
            refusal = error if isinstance(error, ServiceRefusal) else ServiceRefusal(str(error), "unavailable", 503)
            yield _data(openai_error(str(refusal), refusal.status_code, refusal.code))
        yield "data: [DONE]\n\n"


def _data(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"


def _finish(reply: dict[str, Any]) -> str:
    return "stop" if reply["is_complete"] else "length"


def _usage(reply: dict[str, Any]) -> dict[str, int]:
    prompt, completion = reply["prompt_tokens"], reply["tokens"]
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
