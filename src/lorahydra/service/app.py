"""The web application: API, pages, log-in and errors, with the guard in front of all of them."""

from __future__ import annotations

import re
import time
from collections import Counter
from typing import Any

import anyio
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from lorahydra import __version__
from lorahydra.errors import LorahydraError
from lorahydra.service.access import Access
from lorahydra.service.api import CHECKS_AT_ONCE, router
from lorahydra.service.errors import ServiceRefusal, TooManyError
from lorahydra.service.guard import API, Guard
from lorahydra.service.login import login_router
from lorahydra.service.pages import pages_router
from lorahydra.service.service import Service
from lorahydra.service.uploads import BadDatasetError

__all__ = ["create_app"]

CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed", 413: "too_large"}


def create_app(service: Service, access: Access) -> Guard:
    """The ASGI application of an open service.

    Args:
        service: What it shows.
        access: Who may ask.
    """
    app = FastAPI(
        title="lorahydra",
        version=__version__,
        summary="Finds the best LoRA adapter for your data.",
        openapi_url=f"{API}/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    app.state.access = access
    app.state.checks = anyio.CapacityLimiter(CHECKS_AT_ONCE)
    began = time.monotonic()
    app.state.uptime = lambda: round(time.monotonic() - began, 1)
    for routes in (router, pages_router(), login_router(access)):
        app.include_router(routes)
    app.add_exception_handler(LorahydraError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unknown)
    guard = Guard(app, access, service.config.upload_limit)
    app.state.answered = lambda: Counter(guard.answered)
    return guard


def _refused(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, ServiceRefusal):
        # A store that cannot be reached, or a full disk: no other request would do better.
        return _json(503, str(error), "unavailable")
    headers = {"Retry-After": str(max(1, round(error.wait)))} if isinstance(error, TooManyError) else None
    report = {"report": error.report} if isinstance(error, BadDatasetError) else {}
    return _json(error.status, error.message, error.code, headers, **report)


def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first, *others = error.errors()
    if first["type"] == "json_invalid":
        return _json(422, "the body is not JSON", "invalid")
    # What was sent is not repeated, because it may be anything.
    place = ".".join(str(part) for part in first["loc"] if part != "body")
    more = f" (and {len(others)} more)" if others else ""
    problem = "is not allowed here" if first["type"] == "string_pattern_mismatch" else first["msg"]
    return _json(422, f"{place or 'the body'}: {problem}{more}"[:500], "invalid")


def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers) if error.headers else {}
    if error.status_code == 405 and (allowed := _methods(request)):
        # Starlette names those of one route, and several routes may share a path.
        headers["Allow"] = ", ".join(allowed)
    return _json(error.status_code, str(error.detail), CODES.get(error.status_code, "error"), headers)


def _methods(request: Request) -> list[str]:
    """Methods of the API that a path accepts."""
    for template, operations in request.app.openapi()["paths"].items():
        if re.fullmatch(re.sub(r"\\{\w+\\}", "[0-9]+", re.escape(template)), request.url.path):
            return [method.upper() for method in operations]
    return []


def _unknown(request: Request, error: Exception) -> JSONResponse:
    return _json(500, "the server made a mistake: see its log", "internal")


def _json(status: int, detail: str, code: str, headers: dict[str, str] | None = None, **more: Any) -> JSONResponse:
    line = " ".join(detail.encode("utf-8", "replace").decode("utf-8").split())
    return JSONResponse({"detail": line, "code": code, **more}, status, headers)
