"""`judge=gemini`: Google Gemini with the google-genai SDK."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from lorahydra.config.judge import JudgeConfig
from lorahydra.errors import ConfigError
from lorahydra.judges.base import Fault, JudgeFault, JudgePrompt, JudgeReply
from lorahydra.judges.faults import finished_reply, retry_after, status_fault
from lorahydra.judges.http import HttpJudge, import_sdk, ssl_context

__all__ = ["GeminiJudge"]

STRUCTURED, THINKING = "structured output", "thinking"
BLOCKED_REASONS = {
    *("SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "MODEL_ARMOR", "ESCALATION")
}
HARMS = ("HARASSMENT", "HATE_SPEECH", "SEXUALLY_EXPLICIT", "DANGEROUS_CONTENT")
HARM_CATEGORIES = tuple(f"HARM_CATEGORY_{harm}" for harm in HARMS)
"""Filters that are turned off: a harmful answer has to be judged, too."""


class GeminiJudge(HttpJudge):
    """Asks Gemini for JSON of the verdict's schema.

    The option `thinking_budget` sets tokens of thought; 0 for none, null for the model's own choice.
    """

    def __init__(self, config: JudgeConfig) -> None:
        budget = config.options.get("thinking_budget")
        if budget is not None and type(budget) is not int:
            raise ConfigError(f"judge.options.thinking_budget={budget} is not allowed: give a whole number or null")
        features = {STRUCTURED: "json|schema|mime"} if config.structured_output else {}
        features |= {THINKING: "thinking"} if budget is not None else {}
        super().__init__(config, features=features, options=("thinking_budget",))
        genai = import_sdk("google.genai", config.name)
        self._types, self._errors = genai.types, genai.errors
        context = ssl_context(config)
        # The client is kept: its `models` alone would not keep the connection open.
        self._client = genai.Client(
            api_key=self._key,
            vertexai=False,
            http_options=self._types.HttpOptions(
                base_url=config.base_url,
                api_version="v1beta",
                timeout=max(1, int(config.timeout * 1000)),
                client_args={"verify": context} if context else None,
            ),
        )

    def _send(self, prompt: JudgePrompt, features: Collection[str]) -> Any:
        types = self._types
        settings = types.GenerateContentConfig(
            system_instruction=prompt.system,
            temperature=self._config.temperature,
            max_output_tokens=prompt.max_output_tokens,
            candidate_count=1,
            safety_settings=[types.SafetySetting(category=name, threshold="BLOCK_NONE") for name in HARM_CATEGORIES],
        )
        if STRUCTURED in features:
            settings.response_mime_type = "application/json"
            settings.response_json_schema = dict(prompt.schema)
        if THINKING in features:
            settings.thinking_config = types.ThinkingConfig(thinking_budget=self._config.options["thinking_budget"])
        return self._client.models.generate_content(model=self.model, contents=prompt.user, config=settings)

    def _reply(self, response: Any) -> JudgeReply:
        usage = response.usage_metadata
        candidate = (response.candidates or [None])[0]
        parts = candidate.content.parts if candidate and candidate.content else None
        reply = JudgeReply(
            text="".join(part.text for part in parts or () if part.text and not part.thought),
            model=response.model_version or self.model,
            prompt_tokens=(usage and usage.prompt_token_count) or 0,
            # Thoughts are paid for like the reply.
            completion_tokens=sum(
                (getattr(usage, name, None) or 0) for name in ("candidates_token_count", "thoughts_token_count")
            ),
        )
        feedback = response.prompt_feedback
        if feedback is not None and feedback.block_reason:
            raise JudgeFault(Fault.BLOCKED, str(feedback.block_reason.value), reply=reply)
        reason = candidate.finish_reason.value if candidate and candidate.finish_reason else ""
        return finished_reply(reply, reason, blocked=BLOCKED_REASONS, truncated="MAX_TOKENS")

    def _fault(self, error: Exception) -> JudgeFault | None:
        if not isinstance(error, self._errors.APIError):
            return None
        headers = getattr(error.response, "headers", None)
        wait = retry_after(headers) or retry_delay(error.details)
        status = error.code if isinstance(error.code, int) else 500
        return status_fault(status, f"{error.status or ''} {error.message or error.details}", wait)


def retry_delay(details: object) -> float | None:
    """Seconds to wait, from `google.rpc.RetryInfo` in an error's details."""
    match = re.search(r"'retryDelay': '(\d+(?:\.\d+)?)s'", str(details))
    return float(match[1]) if match else None
