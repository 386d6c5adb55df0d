"""What is checked before every request: its host, its origin, who asks, and how much is sent."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from urllib.parse import urlsplit

from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lorahydra.service.access import COOKIE, Access

__all__ = ["API", "Guard"]

API = "/api/v1"
OPEN = (f"{API}/health", "/login", "/logout", "/favicon.ico")
"""Paths that need no token."""
OPEN_FOLDER = "/static/"
SAFE = ("GET", "HEAD", "OPTIONS")
SMALL_BODY = 1 << 16
"""Largest body in bytes of any request that is not an upload."""
AROUND_UPLOAD = 1 << 20
"""Largest size in bytes of what an upload has beside its file."""
REFUSAL_SECONDS = 0.3
"""A wrong token is answered late, so that guessing takes a long time."""
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; "
        "frame-ancestors 'none'"
    ),
}


class _RefusedError(HTTPException):
    """The request goes no further."""

    def __init__(self, status: int, code: str, detail: str, **headers: str) -> None:
        super().__init__(status, detail, headers)
        self.code = code


class Guard:
    """The outermost ASGI middleware.

    Args:
        app: What it guards.
        access: Who may ask, and by which names.
        upload_limit: Largest size of a dataset in bytes.
    """

    def __init__(self, app: ASGIApp, access: Access, upload_limit: int) -> None:
        self._app = app
        self._access = access
        self._upload_limit = upload_limit
        self.answered: Counter[int] = Counter()
        """Number of answers by status."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.answered[message["status"]] += 1
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self._check(scope)
            bounded = self._bounded(scope, receive)
        except _RefusedError as refused:
            content = {"detail": refused.detail, "code": refused.code}
            await JSONResponse(content, refused.status_code, refused.headers)(scope, receive, noted)
            return
        await self._app(scope, bounded, noted)

    async def _check(self, scope: Scope) -> None:
        headers, method, path = Headers(scope=scope), scope["method"], scope["path"]
        if not self._access.knows_host(headers.get("host", "")):
            raise _RefusedError(400, "bad_host", "the Host header does not name this server (see --allow-host)")
        if method not in SAFE and not _comes_from_here(headers):
            raise _RefusedError(403, "cross_site", "the request comes from another site's page")
        is_open = path in OPEN or path.startswith(OPEN_FOLDER)
        if self._access.token is None or is_open or self._is_known(headers):
            return
        if headers.get("authorization"):
            await asyncio.sleep(REFUSAL_SECONDS)
        if not path.startswith("/api/") and method in SAFE and "text/html" in headers.get("accept", ""):
            raise _RefusedError(303, "login", "log in", Location="/login")
        challenge = {"WWW-Authenticate": "Bearer"}
        raise _RefusedError(401, "unauthorized", "send the server's token: Authorization: Bearer …", **challenge)

    def _is_known(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._access.is_token(given.strip().encode("latin-1", "replace")):
            return True
        # Other programs on this host may have set cookies of any kind.
        return self._access.is_session(cookie_parser(headers.get("cookie", "")).get(COOKIE, ""))

    def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        """The body, which must be of the right type and no larger than allowed."""
        headers = Headers(scope=scope)
        # The page's form has the same path without the API's prefix.
        dataset = re.fullmatch(rf"({API})?/projects/[^/]+/datasets", scope["path"])
        upload = scope["method"] == "POST" and dataset is not None
        most = self._upload_limit + AROUND_UPLOAD if upload else SMALL_BODY
        length = headers.get("content-length", "0")
        if (length.isascii() and length.isdigit() and int(length[:20]) > most) or len(length) > 20:
            raise _too_large(most)
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        has_body = length.strip("0") or "transfer-encoding" in headers
        if upload and headers.get("content-encoding", "identity") != "identity":
            raise _RefusedError(415, "unsupported_media_type", "send the file as it is, without Content-Encoding")
        is_call = scope["method"] == "POST" and scope["path"].startswith(API)
        if is_call and not upload and has_body and kind != "application/json":
            raise _RefusedError(415, "unsupported_media_type", "send JSON, with Content-Type: application/json")
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > most:
                raise _too_large(most)  # which FastAPI hands on, whatever it is doing with the body
            return message

        return counted


def _comes_from_here(headers: Headers) -> bool:
    """Whether the request was sent by a page of this server, or by no page at all."""
    if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        return False
    origin = headers.get("origin")
    if origin is None:
        return True
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and parts.netloc.lower() == headers.get("host", "").strip().lower()


def _too_large(most: int) -> _RefusedError:
    return _RefusedError(413, "too_large", f"the request has more than {most} bytes", Connection="close")
