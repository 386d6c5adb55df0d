"""`judge=openai`: any service that speaks OpenAI's chat completions (OpenAI, vLLM, Ollama, OpenRouter, …)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from lorahydra.config.judge import JudgeConfig
from lorahydra.judges.base import Fault, JudgeFault, JudgePrompt, JudgeReply
from lorahydra.judges.faults import finished_reply, retry_after, status_fault
from lorahydra.judges.http import HttpJudge, chat_messages, import_sdk, ssl_context

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
"""Sent to a server that needs no key: the SDK sends nothing without one."""


class OpenAIJudge(HttpJudge):
    """Asks for JSON of the verdict's schema, for any JSON where the service does not know schemas, or just asks.

    Without a `base_url`, OpenAI itself is asked and the key is needed. The option `reasoning_effort` is for reasoning
    models.
    """

    def __init__(self, config: JudgeConfig) -> None:
        features = dict(REFUSALS)
        if not config.structured_output:
            del features[SCHEMA], features[JSON]
        if not config.base_url:
            # OpenAI's newer models take only `max_completion_tokens`; other services often only the older name.
            del features[MAX_TOKENS]
        super().__init__(config, features=features, options=("reasoning_effort",))
        self._sdk = import_sdk("openai", config.name)
        context = ssl_context(config)
        self._client = self._sdk.OpenAI(
            api_key=self._key or NO_KEY,
            base_url=config.base_url or "https://api.openai.com/v1",
            timeout=config.timeout,
            max_retries=0,
            http_client=self._sdk.DefaultHttpxClient(verify=context) if context else None,
        )

    @classmethod
    def needs_key(cls, config: JudgeConfig) -> bool:
        """Only OpenAI's own service; another one may take requests without a key."""
        return not config.base_url

    def _send(self, prompt: JudgePrompt, features: Collection[str]) -> Any:
        limit = MAX_TOKENS if MAX_TOKENS in features else "max_completion_tokens"
        request: dict[str, Any] = {limit: prompt.max_output_tokens}
        if TEMPERATURE in features:
            request["temperature"] = self._config.temperature
        if effort := self._config.options.get("reasoning_effort"):
            request["reasoning_effort"] = effort
        if SCHEMA in features:
            schema = {"name": "verdict", "schema": dict(prompt.schema), "strict": True}
            request["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif JSON in features:
            request["response_format"] = {"type": "json_object"}
        return self._client.chat.completions.create(model=self.model, messages=chat_messages(prompt), **request)

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
        sent, received = (getattr(response.usage, name, 0) for name in ("prompt_tokens", "completion_tokens"))
        reply = JudgeReply(text, response.model or self.model, sent, received)
        if refusal := getattr(choice.message, "refusal", None) or refused:
            raise JudgeFault(Fault.BLOCKED, str(refusal), reply=reply)
        return finished_reply(reply, choice.finish_reason or "", blocked=("content_filter",), truncated="length")

    def _fault(self, error: Exception) -> JudgeFault | None:
        if isinstance(error, self._sdk.APITimeoutError):
            return JudgeFault(Fault.TIMEOUT, f"within {self._config.timeout:g} s")
        if not isinstance(error, self._sdk.APIStatusError):
            return None
        body = error.body if isinstance(error.body, dict) else {}
        said = " ".join(str(body[name]) for name in ("code", "message", "param") if body.get(name))
        return status_fault(error.status_code, said or error.message, retry_after(error.response.headers))


def _texts(content: Any) -> tuple[str, str]:
    """A message's text, and its refusal where there is one.

    Some services send a list of parts; thoughts and whatever else is among them do not belong to the reply.

    Raises:
        TypeError: The content is neither text nor a list of parts.
    """
    if content is None or isinstance(content, str):
        return content or "", ""
    if not isinstance(content, list):
        raise TypeError("the content is neither text nor a list")
    parts = [{"text": part} if isinstance(part, str) else part for part in content]
    text = "".join(part["text"] for part in parts if part.get("type", "text") in TEXT_PARTS)
    return text, " ".join(part["refusal"] for part in parts if part.get("type") == "refusal")
