"""Which fault an HTTP status, an exception or the end of a reply means."""

from __future__ import annotations

import email.utils
import re
import ssl
import time
from collections.abc import Collection
from typing import Any
from urllib.parse import urlsplit

from lorahydra.errors import causes
from lorahydra.judges.base import Fault, JudgeFault, JudgeReply

__all__ = ["connection_fault", "finished_reply", "malformed_fault", "one_line", "retry_after", "status_fault"]

TRANSPORT = {
    *("TransportError", "RequestError", "RequestException"),
    *("APIConnectionError", "ConnectionError", "ProtocolError"),
}
"""Classes of HTTP libraries for a connection that failed."""


def status_fault(status: int, message: str, wait: float | None = None) -> JudgeFault:
    """The fault behind an HTTP status; some services say only in the message what is wrong."""
    text = message.lower()
    if status == 403 and re.search("moderation|flagged", text):
        # OpenRouter and others refuse a single text in this way.
        fault = Fault.BLOCKED
    elif status in (401, 403) or "api_key_invalid" in text or "api key not valid" in text:
        fault = Fault.KEY_REFUSED
    elif status == 402 or "insufficient_quota" in text:
        fault = Fault.QUOTA
    elif status == 404:
        fault = Fault.MODEL_UNKNOWN
    elif status == 429:
        fault = Fault.RATE_LIMIT
    elif status == 408:
        fault = Fault.TIMEOUT
    elif status >= 500 or status in (409, 425):
        fault = Fault.SERVER
    else:
        fault = Fault.REQUEST_REFUSED
    return JudgeFault(fault, f"HTTP {status} {one_line(message)}".strip(), retry_after=wait)


def connection_fault(error: BaseException) -> JudgeFault | None:
    """The fault behind an exception of any HTTP library; None for any other exception.

    Its message names the server, whose address may be the SDK's default and so in no config.
    """
    chain = list(causes(error))
    where = next((f" ({origin})" for origin in map(_origin, chain) if origin), "")
    for cause in chain:
        if isinstance(cause, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY_FAILED" in str(cause):
            return JudgeFault(Fault.CERTIFICATE, f"{one_line(str(cause))}{where}")
    every = set().union(*map(_class_names, chain))
    # The SDK's own words come first and say least: "Connection error."
    telling = [cause for cause in chain if _class_names(cause) & {*TRANSPORT, "OSError"} and str(cause)]
    message = (one_line(str((telling or chain)[-1])).rstrip(". ") or type(error).__name__) + where
    # urllib3 counts a connection that was never made among its timeouts.
    if any("Timeout" in name for name in every) and "NewConnectionError" not in every:
        return JudgeFault(Fault.TIMEOUT, message)
    if every & TRANSPORT:
        return JudgeFault(Fault.CONNECTION, message)
    return None


def _class_names(error: BaseException) -> set[str]:
    return {base.__name__ for base in type(error).__mro__}


def _origin(error: BaseException) -> str | None:
    """The server that was asked, without path and query, which may hold more than an address."""
    try:
        parts = urlsplit(str(error.request.url))  # type: ignore[attr-defined]  # as HTTP libraries have it
        return f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")
    except (AttributeError, RuntimeError, ValueError):
        return None


def malformed_fault(error: Exception) -> JudgeFault:
    """The fault behind an SDK's exception about a body, in the service's words where the exception holds them."""
    said = str(error) or type(error).__name__
    for cause in causes(error):
        if callable(errors := getattr(cause, "errors", None)) and (problems := errors()):  # pydantic's
            where = ".".join(str(step) for step in problems[0]["loc"])
            said = f"{where}: {problems[0]['msg']}, found {problems[0]['input']!r}"
        if body := getattr(cause, "doc", ""):  # json's
            said = f"{said}: {body}"
    return JudgeFault(Fault.UNPARSEABLE, f"malformed reply ({one_line(said)})")


def finished_reply(reply: JudgeReply, reason: str, *, blocked: Collection[str], truncated: str) -> JudgeReply:
    """The reply itself, where the service let the model finish it; all reasons are in the service's words.

    Raises:
        JudgeFault: The reply is blocked, truncated or empty.
    """
    if reason in blocked:
        raise JudgeFault(Fault.BLOCKED, reason, reply=reply)
    if reason == truncated:
        raise JudgeFault(Fault.TRUNCATED, f"after {reply.completion_tokens} tokens", reply=reply)
    if not reply.text.strip():
        raise JudgeFault(Fault.EMPTY, reason, reply=reply)
    return reply


def retry_after(headers: Any) -> float | None:
    """Seconds that a `Retry-After` header asks to wait: a number or a date."""
    value = (headers or {}).get("retry-after") or (headers or {}).get("Retry-After")
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (TypeError, ValueError):
            return None
    return seconds if 0 < seconds < float("inf") else None


def one_line(message: str) -> str:
    """A message without line breaks; not cut, because it must be searched for secrets first."""
    return " ".join(message.split())
