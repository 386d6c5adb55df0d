"""What stands before every request: its host, where it comes from, who asks, and how much is sent."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections import Counter
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lorahydra.service.access import COOKIE, Access

__all__ = ["API", "Guard", "is_upload"]

logger = logging.getLogger(__name__)

API = "/api/v1"
OPEN = (f"{API}/health", "/login", "/logout", "/favicon.ico")
"""Paths that are answered without a token."""
OPEN_FOLDER = "/static/"
SAFE = ("GET", "HEAD", "OPTIONS")
SMALL_BODY = 1 << 16
"""Bytes of any request but an upload."""
AROUND_UPLOAD = 1 << 20
"""Bytes of an upload beside its file."""
REFUSAL_SECONDS = 0.3
"""A wrong token is answered late, so that guessing takes long."""
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


class _RefusedError(Exception):
    """A request that goes no further."""

    def __init__(self, status: int, code: str, detail: str, **headers: str) -> None:
        self.status, self.code, self.detail, self.headers = status, code, detail, headers


def is_upload(method: str, path: str) -> bool:
    """Whether a request brings a dataset."""
    # The page's form has the same path without the API's prefix.
    return method == "POST" and re.fullmatch(rf"({API})?/projects/[^/]+/datasets", path) is not None


class Guard:
    """ASGI middleware, the outermost one.

    Args:
        app: What it guards.
        access: Who may ask, and under which names.
        upload_limit: Bytes of a dataset.
    """

    def __init__(self, app: ASGIApp, access: Access, upload_limit: int) -> None:
        self._app = app
        self._access = access
        self._upload_limit = upload_limit
        self.answered: Counter[int] = Counter()
        """Answers by status."""

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
            within = await self._bounded(scope, receive)
        except _RefusedError as refused:
            await _answer(noted, scope["method"], refused)
            return
        await self._app(scope, within, noted)

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
        # Cookies of other programs on this host come along, whatever they look like.
        return self._access.is_session(cookie_parser(headers.get("cookie", "")).get(COOKIE, ""))

    async def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        """The same body, of which there is no more than allowed; a small one is read here, an upload by its route."""
        headers = Headers(scope=scope)
        upload = is_upload(scope["method"], scope["path"])
        most = self._upload_limit + AROUND_UPLOAD if upload else SMALL_BODY
        length = headers.get("content-length", "0")
        if (length.isascii() and length.isdigit() and int(length[:20]) > most) or len(length) > 20:
            raise _too_large(most)
        if upload:
            if headers.get("content-encoding", "identity") != "identity":
                raise _RefusedError(415, "unsupported_media_type", "send the file as it is, without Content-Encoding")
            return receive
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return receive  # the client has gone
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > most:
                raise _too_large(most)
        if body and scope["method"] == "POST" and scope["path"].startswith(API) and not _is_json(headers):
            raise _RefusedError(415, "unsupported_media_type", "send JSON, with Content-Type: application/json")
        given = False

        async def replay() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        return replay


def _comes_from_here(headers: Headers) -> bool:
    """Whether a page of this server, or no page at all, has sent the request."""
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


def _is_json(headers: Headers) -> bool:
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind == "application/json"


def _too_large(most: int) -> _RefusedError:
    return _RefusedError(413, "too_large", f"the request has more than {most} bytes", Connection="close")


async def _answer(send: Send, method: str, refused: _RefusedError) -> None:
    body = json.dumps({"detail": refused.detail, "code": refused.code}).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **refused.headers}
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refused.status, "headers": raw})
    await send({"type": "http.response.body", "body": b"" if method == "HEAD" else body})
