"""What the judges behind HTTP services share: how they are set up and asked."""

from __future__ import annotations

import importlib
import logging
import re
import ssl
from abc import abstractmethod
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from lorahydra.config.judge import JudgeConfig
from lorahydra.config.judge_registry import install_command, sdk_package
from lorahydra.errors import ConfigError, JudgeSetupError
from lorahydra.judges.base import Fault, Judge, JudgeFault, JudgePrompt, JudgeReply
from lorahydra.judges.faults import connection_fault, malformed_fault, one_line

__all__ = ["HttpJudge", "chat_messages", "check_options", "import_sdk", "require_model", "ssl_context"]

HTTP_LIBRARIES = ("httpx", "httpx2")


class HttpJudge(Judge):
    """A judge behind an HTTP service that has an SDK; a subclass says how its SDK is used.

    Args:
        config: The address, model and limits.
        options: Names that `judge.options` may have.
        features: Parts of a request that not every service and model takes, each with a regular expression for the
            message of a service that refuses it. What is refused is not asked for again.

    Raises:
        ConfigError: No model, or an unknown option.
        JudgeSetupError: The key is missing.
    """

    def __init__(self, config: JudgeConfig, *, features: Mapping[str, str], options: Collection[str] = ()) -> None:
        check_options(config, options)
        self.model = require_model(config)
        self.identity = config.base_url or ""
        self._key = config.require_api_key() if self.needs_key(config) else config.api_key()
        self._config = config
        self._features = dict(features)
        self._client: Any

    @classmethod
    def needs_key(cls, config: JudgeConfig) -> bool:
        """Whether it is an error when no key is set."""
        return True

    @property
    def secrets(self) -> tuple[str, ...]:  # type: ignore[override]  # those of GigaChat change
        """See `Judge.secrets`."""
        return (self._key,) if self._key else ()

    def ask(self, prompt: JudgePrompt) -> JudgeReply:
        """See `Judge.ask`."""
        features = dict(self._features)
        while True:
            try:
                reply = self._ask_once(prompt, features)
            except JudgeFault as fault:
                if fault.fault is not Fault.REQUEST_REFUSED:
                    raise
                refused = [name for name, said in features.items() if re.search(said, fault.message, re.IGNORECASE)]
                if not refused:
                    raise
                del features[refused[0]]
            else:
                self._features = features
                return reply

    def close(self) -> None:
        """See `Judge.close`."""
        self._client.close()

    @abstractmethod
    def _send(self, prompt: JudgePrompt, features: Collection[str]) -> Any:
        """Make one request with these optional features, and return what the SDK gives."""

    @abstractmethod
    def _reply(self, response: Any) -> JudgeReply:
        """The reply in a response that is as the service promises; may raise `JudgeFault`, and anything for others."""

    @abstractmethod
    def _fault(self, error: Exception) -> JudgeFault | None:
        """The fault behind an exception of the SDK; None for any other exception."""

    def _ask_once(self, prompt: JudgePrompt, features: Collection[str]) -> JudgeReply:
        """Make one request; whatever an SDK raises for a failed one becomes a `JudgeFault`."""
        response: Any = None
        try:
            response = self._send(prompt, features)
            return self._reply(response)
        except JudgeFault:
            raise
        except Exception as error:
            is_malformed = isinstance(error, ValueError | TypeError | LookupError | AttributeError)
            if is_malformed and response is not None:
                # An SDK makes something of any body that is JSON, or even of a web page.
                raise JudgeFault(Fault.UNPARSEABLE, f"malformed reply: {one_line(str(response))}") from error
            fault = self._fault(error) or connection_fault(error)
            if fault is None and is_malformed:
                # The SDK stumbled over a body that is not what the service promises.
                fault = malformed_fault(error)
            if fault is None:
                raise
            raise fault from error


def chat_messages(prompt: JudgePrompt) -> list[dict[str, str]]:
    """The prompt as most services take it."""
    return [{"role": "system", "content": prompt.system}, {"role": "user", "content": prompt.user}]


def import_sdk(module: str, judge: str) -> Any:
    """Import a module of a judge's SDK.

    Raises:
        JudgeSetupError: It is not installed, or does not work here.
    """
    for name in (*HTTP_LIBRARIES, module.replace(".", "_")):
        # They log a line or more for each call; what matters is said by lorahydra.
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = sdk_package(judge) or module
        raise JudgeSetupError(f"judge={judge} needs {package}: {install_command(judge)} ({error})") from error


def require_model(config: JudgeConfig) -> str:
    """The model that is asked.

    Raises:
        ConfigError: None is named.
    """
    if not config.model or not config.model.strip():
        raise ConfigError(f"judge.model is not set: name a model of {config.name}")
    return config.model.strip()


def check_options(config: JudgeConfig, allowed: Collection[str]) -> None:
    """Refuse options that the judge does not have.

    Raises:
        ConfigError: There is one.
    """
    for name in config.options:
        if name not in allowed:
            has = f"it has {', '.join(sorted(allowed))}" if allowed else "it has none"
            raise ConfigError(f"judge.options.{name} is not an option of judge {config.name}: {has}")


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
