"""Who may ask: the token of the API, and signed cookies that stand for it in a browser."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from lorahydra.errors import ConfigError

__all__ = ["COOKIE", "TOKEN_VARIABLE", "Access", "is_loopback"]

TOKEN_VARIABLE = "LORAHYDRA_API_TOKEN"
COOKIE = "lorahydra_session"
SESSION_SECONDS = 12 * 3600
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Access:
    """Where the server listens, under which names it is asked, and by whom.

    Raises:
        ConfigError: Others could reach it, and there is no token.
    """

    host: str = "127.0.0.1"
    token: str | None = field(default=None, repr=False)
    """None lets everyone on this machine in."""
    names: Sequence[str] = ()
    """Further host names under which browsers may ask for it."""

    def __post_init__(self) -> None:
        """Check the token."""
        if self.token is None and not is_loopback(self.host):
            raise ConfigError(
                f"--host {self.host} lets other machines in: put a secret into {TOKEN_VARIABLE}, which they must send, "
                "or leave --host out"
            )
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and self.token.strip()):
            raise ConfigError(f"{TOKEN_VARIABLE} is empty or has characters that no header can carry: choose another")

    def knows_host(self, header: str) -> bool:
        """Whether a `Host` header names this server; another name may have been pointed here (DNS rebinding)."""
        name = _host_of(header)
        if name is None:
            return False
        if name in LOOPBACK_NAMES or name in (self.host.lower(), *(known.lower() for known in self.names)):
            return True
        # Listening on all addresses, any of them may be used; an address cannot be rebound.
        return self.host in ("0.0.0.0", "::") and _is_address(name)

    def is_token(self, given: bytes) -> bool:
        """Compare with the token in constant time."""
        return self.token is not None and hmac.compare_digest(given, self.token.encode())

    def new_session(self, now: float | None = None) -> str:
        """A cookie's value that stands for the token for half a day."""
        end = int((time.time() if now is None else now) + SESSION_SECONDS)
        content = f"{end}.{secrets.token_urlsafe(12)}"
        return f"{content}.{self._signature(content)}"

    def is_session(self, cookie: str) -> bool:
        """Whether the value is one of `new_session` and still good; another token makes all of them void."""
        content, _, signature = cookie.rpartition(".")
        end = content.partition(".")[0]
        if self.token is None or not hmac.compare_digest(signature.encode(), self._signature(content).encode()):
            return False
        return end.isascii() and end.isdigit() and int(end) > time.time()

    def _signature(self, content: str) -> str:
        key = hashlib.sha256(b"lorahydra session " + (self.token or "").encode()).digest()
        return hmac.new(key, content.encode("utf-8", "replace"), hashlib.sha256).hexdigest()


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host_of(header: str) -> str | None:
    """The name in a `Host` header, without port and brackets; None where there is none."""
    header = header.strip().lower()
    if header.startswith("["):
        name, bracket, port = header[1:].partition("]")
        return name if bracket and (not port or port[1:].isdigit()) else None
    name, colon, port = header.partition(":")
    return name.rstrip(".") if name and (not colon or (port.isascii() and port.isdigit())) else None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
