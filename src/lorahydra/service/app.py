"""The web application: API, pages, log-in and errors, with the guard in front of all of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import anyio
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from lorahydra import __version__
from lorahydra.errors import LorahydraError
from lorahydra.service import answers, deletion_api, next_api, openai_api
from lorahydra.service.access import Access, login_router
from lorahydra.service.addresses import API, is_openais
from lorahydra.service.api import CHECKS_AT_ONCE, router
from lorahydra.service.errors import ServiceRefusal, json_answer
from lorahydra.service.guard import Guard
from lorahydra.service.pages import chatting, deleting, following, routes, starting, uploading
from lorahydra.service.pages.rendering import STATIC_PATH, Static, error_page
from lorahydra.service.reasons import refusal_answer
from lorahydra.service.service import Service

__all__ = ["create_app"]

logger = logging.getLogger(__name__)

NOT_ALLOWED, UNAVAILABLE = 405, 503
CODES = {400: "bad_request", 404: "not_found", NOT_ALLOWED: "method_not_allowed"}


def create_app(service: Service, access: Access) -> Guard:
    """The ASGI application of an open service."""
    app = FastAPI(
        title="lorahydra",
        version=__version__,
        summary="Finds the best LoRA adapter for your data.",
        openapi_url=f"{API}/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    pages = (routes.router, chatting.router, deleting.router, following.router, starting.router, uploading.router)
    apis = (router, answers.router, openai_api.router, deletion_api.router, next_api.router)
    routers = (*apis, *pages, login_router(access))
    for included in routers:
        app.include_router(included)
    app.state.routes = [route for included in routers for route in included.routes]
    app.mount(STATIC_PATH, Static())
    for kind, handler in (
        (LorahydraError, _refused),
        (RequestValidationError, _invalid),
        (HTTPException, _http),
        (Exception, _unknown),
    ):
        app.add_exception_handler(kind, handler)
    guard = Guard(app, access, service.config.upload_limit)
    app.state.service = service
    app.state.access = access
    app.state.checks = anyio.CapacityLimiter(CHECKS_AT_ONCE)
    app.state.began = time.monotonic()
    app.state.answered = guard.answered
    return guard


def _refused(request: Request, error: Any) -> Response:
    if isinstance(error, ServiceRefusal):
        if _is_page(request):
            return error_page(request, error.status_code, error.detail)
        return refusal_answer(error, request.url.path)
    # A store that cannot be reached, or a full disk: no other request would do better.
    logger.warning("%s: %s", request.url.path, error)
    if _is_page(request):
        return error_page(request, UNAVAILABLE, str(error))
    return _json(request, UNAVAILABLE, str(error), "unavailable")


def _json(request: Request, status: int, detail: str, code: str, headers: Mapping[str, str] | None = None) -> Response:
    return json_answer(request.url.path, status, detail, code, headers)


def _invalid(request: Request, error: Any) -> Response:
    if _is_page(request):
        return error_page(request, 404)  # the address has something else where a number should be
    first, *others = error.errors()
    if first["type"] == "json_invalid":
        return _json(request, 422, "the body is not JSON", "invalid")
    # What was sent is not repeated, because it may be anything.
    place = ".".join(str(part) for part in first["loc"] if part != "body")
    more = f" (and {len(others)} more)" if others else ""
    problem = "is not allowed here" if first["type"] == "string_pattern_mismatch" else first["msg"]
    return _json(request, 422, f"{place or 'the body'}: {problem}{more}"[:500], "invalid")


def _http(request: Request, error: Any) -> Response:
    headers = error.headers if error.status_code != NOT_ALLOWED else {"Allow": _methods(request)}
    if _is_page(request) and error.status_code in CODES:
        return error_page(request, error.status_code, headers=headers)
    code = CODES.get(error.status_code, "error")
    return _json(request, error.status_code, error.detail, code, headers)


def _methods(request: Request) -> str:
    """All methods of an address; Starlette names only those of its first route."""
    found = [route for route in request.app.state.routes if route.matches(request.scope)[0] is not Match.NONE]
    return ", ".join(sorted({method for route in found for method in route.methods}))


def _unknown(request: Request, error: Any) -> Response:
    return _json(request, 500, "the server made a mistake: see its log", "internal")


def _is_page(request: Request) -> bool:
    """Whether a refusal is a page in the reader's language; those of the API and of `POST /login` are JSON."""
    path = request.url.path
    return path != "/login" and not is_openais(path) and not path.startswith(("/api/", f"{STATIC_PATH}/"))
