"""`judge=gemini`: Google Gemini by the google-genai SDK."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from lorahydra.config.judge import JudgeConfig
from lorahydra.errors import ConfigError
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

__all__ = ["BLOCKED_REASONS", "HARM_CATEGORIES", "GeminiJudge", "retry_delay"]

STRUCTURED, THINKING = "structured output", "thinking"
BLOCKED_REASONS = (
    "SAFETY",
    "RECITATION",
    "LANGUAGE",
    "BLOCKLIST",
    "PROHIBITED_CONTENT",
    "SPII",
    "MODEL_ARMOR",
    "ESCALATION",
)
HARM_CATEGORIES = (
    "HARM_CATEGORY_HARASSMENT",
    "HARM_CATEGORY_HATE_SPEECH",
    "HARM_CATEGORY_SEXUALLY_EXPLICIT",
    "HARM_CATEGORY_DANGEROUS_CONTENT",
)
"""Filters that are turned off: what is judged may be bad, and has to be judged all the same."""


class GeminiJudge(Judge):
    """Asks Gemini for JSON of the verdict's schema.

    Args:
        config: `options` knows `thinking_budget`: tokens of thought; 0 for none, null for the model's own choice.

    Raises:
        ConfigError: No model, or an unknown option.
        JudgeSetupError: The SDK or the key is missing.
    """

    def __init__(self, config: JudgeConfig) -> None:
        check_options(config, ("thinking_budget",))
        self.model = require_model(config)
        self.identity = config.base_url or ""
        key = config.require_api_key()
        self.secrets = (key,)
        genai = import_sdk("google.genai", "google-genai", "gemini", config.name)
        self._types, self._errors = genai.types, genai.errors
        context = ssl_context(config)
        # The client is kept: its `models` alone would close the connection behind its back.
        self._client = genai.Client(
            api_key=key,
            vertexai=False,
            http_options=self._types.HttpOptions(
                base_url=config.base_url,
                api_version="v1beta",
                timeout=max(1, int(config.timeout * 1000)),
                client_args={"verify": context} if context else None,
            ),
        )
        self._config = config
        self._thinking_budget = config.options.get("thinking_budget")
        if self._thinking_budget is not None and type(self._thinking_budget) is not int:
            raise ConfigError(
                f"judge.options.thinking_budget={self._thinking_budget} is not allowed: give a whole number or null"
            )
        features = {STRUCTURED: "json|schema|mime"} if config.structured_output else {}
        self._features = OptionalFeatures(
            features | ({THINKING: "thinking"} if self._thinking_budget is not None else {})
        )

    def ask(self, prompt: JudgePrompt) -> JudgeReply:
        """See `Judge.ask`."""
        return self._features.ask(lambda features: self._send(prompt, features))

    def close(self) -> None:
        """See `Judge.close`."""
        self._client.close()

    def _send(self, prompt: JudgePrompt, features: Collection[str]) -> JudgeReply:
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
            settings.thinking_config = types.ThinkingConfig(thinking_budget=self._thinking_budget)
        with sdk_faults(self._fault):
            response = self._client.models.generate_content(model=self.model, contents=prompt.user, config=settings)
            return read_response(response, self._reply)

    def _reply(self, response: Any) -> JudgeReply:
        usage = response.usage_metadata
        candidate = (response.candidates or [None])[0]
        parts = candidate.content.parts if candidate and candidate.content else None
        text = "".join(part.text for part in parts or () if part.text and not part.thought)
        reply = JudgeReply(
            text=text,
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
        return finished_reply(reply, reason, blocked=BLOCKED_REASONS, cut="MAX_TOKENS")

    def _fault(self, error: Exception) -> JudgeFault | None:
        if not isinstance(error, self._errors.APIError):
            return None
        headers = getattr(error.response, "headers", None)
        wait = retry_after(headers) or retry_delay(error.details)
        status = error.code if isinstance(error.code, int) else 500
        return status_fault(status, f"{error.status or ''} {error.message or error.details}", wait)


def retry_delay(details: object) -> float | None:
    """What `google.rpc.RetryInfo` in an error's details says."""
    match = re.search(r"'retryDelay': '(\d+(?:\.\d+)?)s'", str(details))
    return float(match[1]) if match else None
