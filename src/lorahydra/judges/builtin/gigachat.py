"""`judge=gigachat`: Sber GigaChat with its own SDK, with OAuth."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from lorahydra.config.judge import JudgeConfig
from lorahydra.errors import ConfigError
from lorahydra.judges.base import JudgeFault, JudgePrompt, JudgeReply
from lorahydra.judges.faults import finished_reply, retry_after, status_fault
from lorahydra.judges.http import HttpJudge, chat_messages, import_sdk, ssl_context

__all__ = ["GigaChatJudge"]

STRUCTURED = "structured output"
SCOPES = ("GIGACHAT_API_PERS", "GIGACHAT_API_B2B", "GIGACHAT_API_CORP")
LEAST_TEMPERATURE = 0.01
"""The service refuses 0 (HTTP 422); with `top_p` near 0 the most probable token is taken all the same."""
TOP_P = 0.01


class GigaChatJudge(HttpJudge):
    """Asks GigaChat for JSON of the verdict's schema."""

    def __init__(self, config: JudgeConfig) -> None:
        if config.scope is not None and config.scope not in SCOPES:
            raise ConfigError(f"judge.scope={config.scope} is not allowed: choose one of {', '.join(SCOPES)}")
        features = {STRUCTURED: "response_format|json|schema"} if config.structured_output else {}
        # The key is needed: without it the SDK would ask unauthenticated, without a word.
        super().__init__(config, features=features)
        sdk = import_sdk("gigachat", config.name)
        self._response_error = import_sdk("gigachat.exceptions", config.name).ResponseError
        self._client = sdk.GigaChat(
            credentials=self._key,
            scope=config.scope,
            model=self.model,
            base_url=config.base_url,
            auth_url=config.auth_url,
            timeout=config.timeout,
            verify_ssl_certs=True,
            ssl_context=ssl_context(config),
            max_retries=0,
        )

    @property
    def secrets(self) -> tuple[str, ...]:  # type: ignore[override]  # see HttpJudge
        """The credentials and the present access token, which changes every half an hour."""
        return tuple(secret for secret in (self._key, self._client.token) if secret)

    def _send(self, prompt: JudgePrompt, features: Collection[str]) -> Any:
        payload: dict[str, Any] = {
            "model": self.model,
            "messages": chat_messages(prompt),
            "temperature": max(self._config.temperature, LEAST_TEMPERATURE),
            "max_tokens": prompt.max_output_tokens,
        }
        if self._config.temperature < LEAST_TEMPERATURE:
            payload["top_p"] = TOP_P
        if STRUCTURED in features:
            payload["response_format"] = {"type": "json_schema", "schema": dict(prompt.schema), "strict": True}
        return self._client.chat(payload)

    def _reply(self, response: Any) -> JudgeReply:
        choice = response.choices[0] if response.choices else None
        text = choice.message.content if choice else ""
        usage = response.usage
        reply = JudgeReply(text, response.model or self.model, usage.prompt_tokens, usage.completion_tokens)
        reason = (choice.finish_reason or "") if choice else ""
        return finished_reply(reply, reason, blocked=("blacklist", "content_filter"), truncated="length")

    def _fault(self, error: Exception) -> JudgeFault | None:
        if not isinstance(error, self._response_error):
            return None
        body = (error.content or b"").decode("utf-8", errors="replace")
        return status_fault(error.status_code, body, retry_after(error.headers))
