"""What is checked before every request: its host, its origin, who asks, and how much is sent."""

from __future__ import annotations

import asyncio
import re
from collections import Counter

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lorahydra.service.access import COOKIE, Access
from lorahydra.service.addresses import API, OPENAI
from lorahydra.service.errors import ServiceRefusal, TooLargeError, UnsupportedError
from lorahydra.service.reasons import refusal_answer

__all__ = ["Guard"]

OPEN = (f"{API}/health", "/login", "/logout", "/favicon.ico")
"""Paths that need no token."""
OPEN_FOLDER = "/static/"
SAFE = ("GET", "HEAD", "OPTIONS")
SMALL_BODY = 1 << 18
"""Largest body in bytes of any other request: notes of the greatest length take half of it as a form."""
CHAT_BODY = 1 << 22
"""Largest body in bytes of a request with a conversation."""
CHAT = re.compile(rf"{OPENAI}/chat/completions|({API})?/fine-tunes/[^/]+/(generate|chat|answer)")
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


class Guard:
    """The outermost ASGI middleware; `upload_limit` is the largest size of a dataset in bytes."""

    def __init__(self, app: ASGIApp, access: Access, upload_limit: int) -> None:
        self._app = app
        self._access = access
        self._upload_limit = upload_limit
        self.answered: Counter[int] = Counter()
        """Number of answers by status."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http":  # the server starts and ends; it takes no other connections
            await self._app(scope, receive, send)
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
        except ServiceRefusal as refusal:
            await refusal_answer(refusal, scope["path"])(scope, receive, noted)
            return
        await self._app(scope, bounded, noted)

    async def _check(self, scope: Scope) -> None:
        headers, method, path = Headers(scope=scope), scope["method"], scope["path"]
        if not self._access.knows_host(headers.get("host", "")):
            raise ServiceRefusal("the Host header does not name this server (see --allow-host)", "bad_host")
        if method not in SAFE and not _comes_from_here(headers):
            raise ServiceRefusal("the request comes from another site's page", "cross_site", 403)
        is_open = path in OPEN or path.startswith(OPEN_FOLDER)
        if self._access.token is None or is_open or self._is_known(headers):
            return
        if headers.get("authorization"):
            await asyncio.sleep(REFUSAL_SECONDS)
        if not path.startswith(("/api/", f"{OPENAI}/")) and method in SAFE and "text/html" in headers.get("accept", ""):
            raise ServiceRefusal("log in", "login", 303, {"Location": "/login"})
        line = "send the server's token: Authorization: Bearer …"
        raise ServiceRefusal(line, "unauthorized", 401, {"WWW-Authenticate": "Bearer"})

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
        most = CHAT_BODY if CHAT.fullmatch(scope["path"]) else SMALL_BODY
        most = self._upload_limit + AROUND_UPLOAD if upload else most
        length = headers.get("content-length", "0")
        too_large = TooLargeError(f"the request has more than {most} bytes", headers={"Connection": "close"})
        if length.isdecimal() and int(length[:20]) > most:
            raise too_large
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        has_body = length.strip("0") or "transfer-encoding" in headers
        if upload and headers.get("content-encoding", "identity") != "identity":
            raise UnsupportedError("send the file as it is, without Content-Encoding")
        is_call = scope["method"] in ("POST", "PATCH") and scope["path"].startswith((API, OPENAI))
        if is_call and dataset is None and has_body and kind != "application/json":
            raise UnsupportedError("send JSON, with Content-Type: application/json")
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > most:
                raise too_large  # which FastAPI hands on, whatever it is doing with the body
            return message

        return counted


def _comes_from_here(headers: Headers) -> bool:
    """Whether the request was sent by a page of this server, or by no page at all."""
    if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        return False
    origin = headers.get("origin")
    if origin is None:
        return True
    scheme, _, host = origin.lower().partition("://")
    return scheme in ("http", "https") and host == headers.get("host", "").strip().lower()
