"""What the service refuses, with a code for programs and one line for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from lorahydra.errors import UserError
from lorahydra.service.addresses import is_openais

__all__ = [
    "ConflictError",
    "InvalidError",
    "Message",
    "NotFoundError",
    "ServiceRefusal",
    "TooLargeError",
    "TooManyError",
    "UnsupportedError",
    "json_answer",
    "openai_error",
]


class Message(str):
    """A line in English that also carries its code and its values, so that the page can say it in another language.

    Args:
        text: The line.
        code: The page's message that says the same, without its prefix `said.`.
        values: What that message is filled with.
    """

    code: str
    values: dict[str, str | int]

    def __new__(cls, text: str, code: str = "", **values: str | int) -> Message:
        """A string with two more attributes."""
        message = super().__new__(cls, text)
        message.code, message.values = code, values
        return message


class ServiceRefusal(UserError, HTTPException):
    """A request that cannot be fulfilled. FastAPI passes on only an `HTTPException` while it reads a body.

    Args:
        message: One line for people.
        code: One word for programs; that of the class by default.
        status: HTTP status that says the same; that of the class by default.
        headers: Headers of the answer.
    """

    status, code = 400, "bad_request"
    report: Mapping[str, Any] | None = None
    """The data report of a dataset that was refused."""
    offer: Mapping[str, Any] | None = None
    """What could make a file readable that was refused, from `make_offer`."""

    def __init__(
        self,
        message: str,
        code: str | None = None,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        HTTPException.__init__(self, status or self.status, message, headers)
        self.code = code or self.code

    def __str__(self) -> str:
        return self.detail


class NotFoundError(ServiceRefusal):
    """Nothing has this id."""

    status, code = 404, "not_found"


class ConflictError(ServiceRefusal):
    """The request conflicts with the current state."""

    status, code = 409, "conflict"


class TooLargeError(ServiceRefusal):
    """More bytes were sent than are allowed."""

    status, code = 413, "too_large"


class UnsupportedError(ServiceRefusal):
    """The body has a type that is not accepted here."""

    status, code = 415, "unsupported_media_type"


class InvalidError(ServiceRefusal):
    """A value is not valid."""

    status, code = 422, "invalid"


class TooManyError(ServiceRefusal):
    """There were too many requests in a short time; `wait` is in seconds."""

    status, code = 429, "too_many_requests"

    def __init__(self, message: str, wait: float) -> None:
        self.wait = max(1, round(wait))
        super().__init__(message, headers={"Retry-After": str(self.wait)})


def json_answer(
    path: str, status: int, detail: str, code: str, headers: Mapping[str, str] | None = None, **more: Any
) -> JSONResponse:
    """A refusal of a request for this path as JSON, with one line that can be sent."""
    line = " ".join(detail.encode("utf-8", "replace").decode("utf-8").split())
    content = openai_error(line, status, code) if is_openais(path) else {"detail": line, "code": code, **more}
    return JSONResponse(content, status, headers)


def openai_error(line: str, status: int, code: str) -> dict[str, Any]:
    """A refusal in the form of OpenAI's API."""
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    return {"error": {"message": line, "type": kind, "param": None, "code": code}}
