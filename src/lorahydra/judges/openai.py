"""`judge=openai`: any service that speaks OpenAI's chat completions (OpenAI, vLLM, Ollama, OpenRouter, …)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from lorahydra.config.judge import JudgeConfig
from lorahydra.judges.base import Fault, Judge, JudgeFault, JudgePrompt, JudgeReply
from lorahydra.judges.http import (
    OptionalFeatures,
    check_options,
    finished_reply,
    import_sdk,
    read_response,
    require_model,
    retry_after,
    sdk_faults,
    ssl_context,
    status_fault,
)

__all__ = ["OpenAIJudge"]

SCHEMA, JSON, TEMPERATURE, MAX_TOKENS = "json_schema", "json_object", "temperature", "max_tokens"
REFUSALS = {
    SCHEMA: r"response_format|json_schema|schema|structured",
    JSON: r"response_format|json",
    TEMPERATURE: "temperature",
    MAX_TOKENS: "max_tokens",
}
TEXT_PARTS = ("text", "output_text")
NO_KEY = "none"
"""What a server of one's own gets: the SDK sends nothing without a key."""


class OpenAIJudge(Judge):
    """Asks for JSON of the verdict's schema, for any JSON where the service does not know schemas, or just asks.

    Args:
        config: Without a `base_url`, OpenAI itself is asked and the key is needed. Knows the option
            `reasoning_effort` of reasoning models.

    Raises:
        ConfigError: No model, or an unknown option.
        JudgeSetupError: The SDK or the key is missing.
    """

    def __init__(self, config: JudgeConfig) -> None:
        check_options(config, ("reasoning_effort",))
        self.model = require_model(config)
        self.identity = config.base_url or ""
        key = config.api_key() if config.base_url else config.require_api_key()
        self.secrets = (key,) if key else ()
        self._sdk = import_sdk("openai", "openai", "openai", config.name)
        context = ssl_context(config)
        self._client = self._sdk.OpenAI(
            api_key=key or NO_KEY,
            base_url=config.base_url or "https://api.openai.com/v1",
            timeout=config.timeout,
            max_retries=0,
            http_client=self._sdk.DefaultHttpxClient(verify=context) if context else None,
        )
        self._config = config
        features = dict(REFUSALS)
        if not config.structured_output:
            del features[SCHEMA], features[JSON]
        if not config.base_url:
            # OpenAI's newer models know only `max_completion_tokens`; other services often only the older name.
            del features[MAX_TOKENS]
        self._features = OptionalFeatures(features)

    def ask(self, prompt: JudgePrompt) -> JudgeReply:
        """See `Judge.ask`."""
        return self._features.ask(lambda features: self._send(prompt, features))

    def close(self) -> None:
        """See `Judge.close`."""
        self._client.close()

    def _send(self, prompt: JudgePrompt, features: Collection[str]) -> JudgeReply:
        request: dict[str, Any] = {
            MAX_TOKENS if MAX_TOKENS in features else "max_completion_tokens": prompt.max_output_tokens,
        }
        if TEMPERATURE in features:
            request["temperature"] = self._config.temperature
        if effort := self._config.options.get("reasoning_effort"):
            request["reasoning_effort"] = effort
        if SCHEMA in features:
            schema = {"name": "verdict", "schema": dict(prompt.schema), "strict": True}
            request["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif JSON in features:
            request["response_format"] = {"type": "json_object"}
        messages = [{"role": "system", "content": prompt.system}, {"role": "user", "content": prompt.user}]
        with sdk_faults(self._fault):
            response = self._client.chat.completions.create(model=self.model, messages=messages, **request)
            return read_response(response, self._reply)

    def _reply(self, response: Any) -> JudgeReply:
        if not response.choices:
            # OpenRouter reports errors of the services behind it with HTTP 200.
            error = getattr(response, "error", None)
            if isinstance(error, dict):
                code = error.get("code")
                raise status_fault(code if isinstance(code, int) else 500, str(error.get("message", "")))
            raise JudgeFault(Fault.EMPTY, "no choices")
        choice = response.choices[0]
        text, refused = _texts(choice.message.content)
        usage = response.usage
        reply = JudgeReply(
            text,
            response.model or self.model,
            getattr(usage, "prompt_tokens", 0),
            getattr(usage, "completion_tokens", 0),
        )
        if refusal := getattr(choice.message, "refusal", None) or refused:
            raise JudgeFault(Fault.BLOCKED, str(refusal), reply=reply)
        return finished_reply(reply, choice.finish_reason or "", blocked=("content_filter",), cut="length")

    def _fault(self, error: Exception) -> JudgeFault | None:
        if isinstance(error, self._sdk.APITimeoutError):
            return JudgeFault(Fault.TIMEOUT, f"within {self._config.timeout:g} s")
        if not isinstance(error, self._sdk.APIStatusError):
            return None
        body = error.body if isinstance(error.body, dict) else {}
        said = " ".join(str(body[name]) for name in ("code", "message", "param") if body.get(name))
        return status_fault(error.status_code, said or error.message, retry_after(error.response.headers))


def _texts(content: Any) -> tuple[str, str]:
    """A message's text, and what it says instead as a refusal.

    Some services send a list of parts; thoughts and whatever else is among them is not the reply.

    Raises:
        TypeError: It is neither text nor a list of parts.
    """
    if content is None or isinstance(content, str):
        return content or "", ""
    if not isinstance(content, list):
        raise TypeError("neither a text nor a list")
    parts = [{"text": part} if isinstance(part, str) else part for part in content]
    text = "".join(part["text"] for part in parts if part.get("type", "text") in TEXT_PARTS)
    return text, " ".join(part["refusal"] for part in parts if part.get("type") == "refusal")
