"""How pages answer: refusals as pages of their own, and where a browser goes next."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse
from fastapi.routing import APIRoute

from lorahydra.errors import LorahydraError
from lorahydra.service.errors import ServiceRefusal
from lorahydra.service.pages.rendering import is_fragment, render, words_of

__all__ = ["PageRoute", "error_page", "go"]

logger = logging.getLogger(__name__)

UNAVAILABLE = 503


class PageRoute(APIRoute):
    """A route whose refusals are pages in the reader's language."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The route's handler, which also answers refusals."""
        handler = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handler(request)
            except RequestValidationError:
                return error_page(request, 404)  # the address has something else where a number should be
            except ServiceRefusal as refusal:
                return error_page(request, refusal.status, refusal.message)
            except LorahydraError as error:
                logger.warning("%s: %s", request.url.path, error)
                return error_page(request, UNAVAILABLE, str(error))

        return answer


def error_page(request: Request, status: int, detail: str | None = None) -> Response:
    """A page that says what was refused and what can be done, and leads back.

    Args:
        request: The request.
        status: HTTP status; 404, 409, 413, 422, 429 and 503 have messages of their own.
        detail: The service's one line.
    """
    words = words_of(request)
    kind = str(status) if f"error.{status}" in words else str(UNAVAILABLE)
    values = {"title": words(f"error.{kind}"), "hint": words(f"error.{kind}.hint"), "detail": detail, "back": "/"}
    return render(request, "message.html", values, status)


def go(request: Request, path: str) -> Response:
    """Send the browser to another page of this server, after a form."""
    if is_fragment(request):
        return Response(status_code=204, headers={"HX-Redirect": path, "Cache-Control": "no-store"})
    return RedirectResponse(path, 303)
