"""Who may ask: the token of the API, and signed cookies that stand for it in a browser."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from itsdangerous import BadSignature, TimestampSigner

from lorahydra.errors import ConfigError

__all__ = ["COOKIE", "SESSION_SECONDS", "TOKEN_VARIABLE", "Access"]

TOKEN_VARIABLE = "LORAHYDRA_API_TOKEN"
COOKIE = "lorahydra_session"
SESSION_SECONDS = 12 * 3600
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


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    with suppress(ValueError):
        return ipaddress.ip_address(text)
    return None
