"""Who may ask: the token of the API, and signed cookies that stand for it in a browser.

`POST /login` with the form field `token` exchanges the token for a cookie, and `POST /logout` takes the cookie back.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response
from itsdangerous import BadSignature, TimestampSigner

from lorahydra.errors import ConfigError
from lorahydra.service.errors import ServiceRefusal, TooManyError
from lorahydra.service.limits import Allowances

__all__ = ["COOKIE", "TOKEN_VARIABLE", "Access", "login_router"]

TOKEN_VARIABLE = "LORAHYDRA_API_TOKEN"
COOKIE = "lorahydra_session"
SESSION_SECONDS = 12 * 3600
FAILURES_PER_MINUTE = 10
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Access:
    """Where the server listens, which names it answers to, and who may ask.

    Raises:
        ConfigError: Other machines could reach the server, and there is no token.
    """

    host: str = "127.0.0.1"
    token: str | None = field(default=None, repr=False)
    """None lets everyone on this machine in."""
    names: Sequence[str] = ()
    """Further host names by which browsers may address the server."""

    def __post_init__(self) -> None:
        """Check the token."""
        address = _address(self.host)
        is_loopback = self.host.lower() == "localhost" or (address is not None and address.is_loopback)
        if self.token is None and not is_loopback:
            raise ConfigError(
                f"--host {self.host} lets other machines in: put a secret into {TOKEN_VARIABLE}, which they must send, "
                "or leave --host out"
            )
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and self.token.strip()):
            raise ConfigError(f"{TOKEN_VARIABLE} is empty or has characters that a header cannot carry: choose another")

    def knows_host(self, header: str) -> bool:
        """Whether a `Host` header names this server; another name may have been pointed here (DNS rebinding).

        Starlette's TrustedHostMiddleware knows names only: not "any address", and not our refusals.
        """
        name = ""
        with suppress(ValueError):  # of a malformed address or port
            parts = urlsplit(f"//{header.strip()}")
            name = (parts.hostname or "").rstrip(".") if parts.port is None or parts.port else ""
        if name in (*LOOPBACK_NAMES, *(other.lower() for other in (self.host, *self.names))):
            return True
        # A server that listens on all addresses may be asked by any of them: an address cannot be rebound.
        return self.host in ("0.0.0.0", "::") and _address(name) is not None

    def is_token(self, given: bytes) -> bool:
        """Compare with the token in constant time."""
        return self.token is not None and hmac.compare_digest(given, self.token.encode())

    def new_session(self) -> str:
        """Value of a cookie that stands for the token for twelve hours."""
        return self._signer().sign(secrets.token_urlsafe(12)).decode()

    def is_session(self, cookie: str) -> bool:
        """Whether a cookie is from `new_session` and still valid; a change of the token ends all sessions."""
        try:
            self._signer().unsign(cookie, max_age=SESSION_SECONDS)
        except BadSignature:
            return False
        return self.token is not None

    def _signer(self) -> TimestampSigner:
        return TimestampSigner(self.token or "", salt="lorahydra session", digest_method=hashlib.sha256)


def login_router(access: Access) -> APIRouter:
    """Routes to log in and out; the form is a page."""
    router = APIRouter(include_in_schema=False)
    failures = Allowances(FAILURES_PER_MINUTE, "wrong tokens")

    @router.post("/login")
    async def login(request: Request) -> Response:
        try:
            if access.token is not None:
                allowance = failures.of(_network(request.client.host if request.client else ""))
                allowance.take(count=False)  # first, so that the answer does not tell a right guess from a wrong one
                given = (await request.form()).get("token")
                if not (isinstance(given, str) and access.is_token(given.encode("utf-8", "replace"))):
                    allowance.take()
                    raise ServiceRefusal("this is not the server's token", "unauthorized", 401)
        except ServiceRefusal as refusal:
            if not _wants_page(request):
                raise
            wait = f"&wait={refusal.wait}" if isinstance(refusal, TooManyError) else ""
            return RedirectResponse(f"/login?failed=1{wait}", status_code=303)
        answer = _answer(request, "/")
        is_secure = "https" in (request.url.scheme, request.headers.get("origin", "").partition(":")[0])
        session = access.new_session()
        answer.set_cookie(COOKIE, session, SESSION_SECONDS, httponly=True, samesite="strict", secure=is_secure)
        return answer

    @router.post("/logout")
    def logout(request: Request) -> Response:
        answer = _answer(request, "/login")
        answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return answer

    return router


def _answer(request: Request, page: str) -> Response:
    return RedirectResponse(page, 303) if _wants_page(request) else JSONResponse({"status": "ok"})


def _wants_page(request: Request) -> bool:
    return "text/html" in request.headers.get("accept", "")


def _network(client: str) -> str:
    """What a client's address is counted under: one IPv6 client has a whole network of addresses."""
    address = _address(client)
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:  # a server on all addresses sees IPv4 clients so
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return client


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    with suppress(ValueError):
        return ipaddress.ip_address(text)
    return None
