"""What the judges behind HTTP services share: keys, SDKs, and faults from statuses and broken connections."""

from __future__ import annotations

import email.utils
import importlib
import logging
import re
import ssl
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from lorahydra.config.judge import JudgeConfig
from lorahydra.errors import ConfigError, JudgeSetupError, causes
from lorahydra.judges.base import Fault, JudgeFault, JudgeReply

__all__ = [
    "OptionalFeatures",
    "check_options",
    "connection_fault",
    "finished_reply",
    "import_sdk",
    "malformed_fault",
    "read_response",
    "require_model",
    "retry_after",
    "sdk_faults",
    "ssl_context",
    "status_fault",
]

Response = TypeVar("Response")

TALKATIVE = ("httpx", "httpx2", "google_genai", "gigachat", "openai")
"""Loggers of SDKs."""
TRANSPORT = {
    *("TransportError", "RequestError", "RequestException"),
    *("APIConnectionError", "ConnectionError", "ProtocolError"),
}
"""Classes of HTTP libraries for a connection that failed."""


def import_sdk(module: str, package: str, extra: str, judge: str) -> Any:
    """Import a service's SDK.

    Raises:
        JudgeSetupError: It is not installed, or does not work here.
    """
    for name in TALKATIVE:
        # A line or more for each call; what matters is said by lorahydra.
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise JudgeSetupError(f"judge={judge} needs {package}: pip install 'lorahydra[{extra}]' ({error})") from error


def require_model(config: JudgeConfig) -> str:
    """The model that is asked.

    Raises:
        ConfigError: None is named.
    """
    if not config.model or not config.model.strip():
        raise ConfigError(f"judge.model is not set: name a model of {config.name}")
    return config.model.strip()


def check_options(config: JudgeConfig, known: Collection[str]) -> None:
    """Refuse options that the judge does not know.

    Raises:
        ConfigError: There is one.
    """
    for name in config.options:
        if name not in known:
            allowed = f"it knows {', '.join(sorted(known))}" if known else "it has none"
            raise ConfigError(f"judge.options.{name} is no option of judge {config.name}: {allowed}")


def ssl_context(config: JudgeConfig) -> ssl.SSLContext | None:
    """How the service's certificate is checked; None for the SDK's own way.

    Raises:
        JudgeSetupError: `judge.ca_bundle_file` cannot be read.
    """
    if not config.verify_ssl_certs:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    if config.ca_bundle_file is None:
        return None
    try:
        context = ssl.create_default_context()
        context.load_verify_locations(cafile=Path(config.ca_bundle_file).expanduser())
    except (OSError, ssl.SSLError, RuntimeError, ValueError) as error:
        raise JudgeSetupError(f"judge.ca_bundle_file={config.ca_bundle_file} cannot be read: {error}") from error
    return context


def status_fault(status: int, message: str, wait: float | None = None) -> JudgeFault:
    """The fault behind an HTTP status.

    Args:
        status: Of the reply.
        message: What the service said; some say only there what is wrong.
        wait: Seconds that it asks to wait.
    """
    text = message.lower()
    if status == 403 and re.search("moderation|flagged", text):
        # OpenRouter and others refuse a single text so.
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
    return JudgeFault(fault, f"HTTP {status} {_line(message)}".strip(), retry_after=wait)


def connection_fault(error: BaseException) -> JudgeFault | None:
    """The fault behind an exception of an HTTP library, whichever it is; None when it is none of theirs.

    Its message names the server, whose address may be the service's own and so in no config.
    """
    chain = list(causes(error))
    where = next((f" ({origin})" for origin in map(_origin, chain) if origin), "")
    for found in chain:
        if isinstance(found, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY_FAILED" in str(found):
            return JudgeFault(Fault.CERTIFICATE, f"{_line(str(found))}{where}")
    names = [{base.__name__ for base in type(found).__mro__} for found in chain]
    every = set().union(*names)
    # The SDK's own words come first and say least: "Connection error."
    said = [found for found, own in zip(chain, names, strict=True) if own & {*TRANSPORT, "OSError"} and str(found)]
    message = (_line(str((said or chain)[-1])).rstrip(". ") or type(error).__name__) + where
    # urllib3 counts a connection that was never made among its timeouts.
    if any("Timeout" in name for name in every) and "NewConnectionError" not in every:
        return JudgeFault(Fault.TIMEOUT, message)
    if every & TRANSPORT:
        return JudgeFault(Fault.CONNECTION, message)
    return None


def _origin(error: BaseException) -> str | None:
    """The server that was asked, without path and query, which may hold more than an address."""
    try:
        parts = urlsplit(str(error.request.url))  # type: ignore[attr-defined]  # as HTTP libraries have it
        return f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")
    except (AttributeError, RuntimeError, ValueError):
        return None


@contextmanager
def sdk_faults(sdk_fault: Callable[[Exception], JudgeFault | None]) -> Iterator[None]:
    """Turn whatever an SDK raises for a failed call into a `JudgeFault`.

    Args:
        sdk_fault: Knows the SDK's own exceptions; gives None for others.
    """
    try:
        yield
    except JudgeFault:
        raise
    except Exception as error:
        fault = sdk_fault(error) or connection_fault(error)
        if fault is None and isinstance(error, ValueError | TypeError | LookupError | AttributeError):
            # The SDK stumbled over a body that is not what the service promises.
            fault = malformed_fault(error)
        if fault is None:
            raise
        raise fault from error


def malformed_fault(error: Exception) -> JudgeFault:
    """The fault behind an SDK's exception about a body, in the service's words where the exception holds them."""
    said = str(error) or type(error).__name__
    for found in causes(error):
        if callable(each := getattr(found, "errors", None)) and (problems := each()):  # pydantic's
            where = ".".join(str(step) for step in problems[0]["loc"])
            said = f"{where}: {problems[0]['msg']}, found {problems[0]['input']!r}"
        if body := getattr(found, "doc", ""):  # json's
            said = f"{said}: {body}"
    return JudgeFault(Fault.UNPARSEABLE, f"malformed reply ({_line(said)})")


def read_response(response: Response, reader: Callable[[Response], JudgeReply]) -> JudgeReply:
    """The reply in what an SDK made of a body, which may be anything that is JSON, or even a page.

    Args:
        response: What the SDK gave.
        reader: Takes what the service promises.

    Raises:
        JudgeFault: From `reader`, or one that quotes what came instead.
    """
    try:
        return reader(response)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise JudgeFault(Fault.UNPARSEABLE, f"malformed reply: {_line(str(response))}") from error


def finished_reply(reply: JudgeReply, reason: str, *, blocked: Collection[str], cut: str) -> JudgeReply:
    """The reply itself, where the service let it come to its end.

    Args:
        reply: What came back.
        reason: Why the model stopped, in the service's words.
        blocked: Its words for a filter.
        cut: Its word for the limit of tokens.

    Raises:
        JudgeFault: It is blocked, cut or empty.
    """
    if reason in blocked:
        raise JudgeFault(Fault.BLOCKED, reason, reply=reply)
    if reason == cut:
        raise JudgeFault(Fault.TRUNCATED, f"after {reply.completion_tokens} tokens", reply=reply)
    if not reply.text.strip():
        raise JudgeFault(Fault.EMPTY, reason, reply=reply)
    return reply


class OptionalFeatures:
    """Parts of a request that not every service and model takes; what is refused is not asked for again.

    Args:
        patterns: For each feature, what is in the message of a service that refuses it (a regular expression).
    """

    def __init__(self, patterns: Mapping[str, str]) -> None:
        self._supported = dict(patterns)

    def ask(self, send: Callable[[Collection[str]], JudgeReply]) -> JudgeReply:
        """Call `send` with the features, with fewer as long as it is refused because of one.

        Raises:
            JudgeFault: From `send`.
        """
        supported = dict(self._supported)
        while True:
            try:
                reply = send(supported)
            except JudgeFault as fault:
                refused = [
                    name
                    for name, pattern in supported.items()
                    if fault.fault is Fault.REQUEST_REFUSED and re.search(pattern, fault.message, re.IGNORECASE)
                ]
                if not refused:
                    raise
                del supported[refused[0]]
            else:
                self._supported = supported
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


def _line(message: str) -> str:
    # Not cut here: first it must be searched for secrets.
    return " ".join(message.split())
