"""`judge=gemini_legacy`: Google Gemini with google-generativeai, which is no longer maintained but still in use."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from typing import Any

from lorahydra.config.judge import JudgeConfig
from lorahydra.errors import ConfigError
from lorahydra.judges.base import Fault, JudgeFault, JudgePrompt, JudgeReply
from lorahydra.judges.builtin.gemini import BLOCKED_REASONS, HARM_CATEGORIES, retry_delay
from lorahydra.judges.faults import finished_reply, malformed_fault, retry_after, status_fault
from lorahydra.judges.http import HttpJudge, import_sdk

__all__ = ["GeminiLegacyJudge"]

JSON = "JSON"


class GeminiLegacyJudge(HttpJudge):
    """Asks Gemini over REST for JSON.

    The SDK's settings (key, address) belong to the whole process: of two such judges, those of the newer one count.
    """

    def __init__(self, config: JudgeConfig) -> None:
        if config.ca_bundle_file is not None or not config.verify_ssl_certs:
            raise ConfigError(
                "judge.ca_bundle_file and judge.verify_ssl_certs=false are not possible with gemini_legacy: "
                "set REQUESTS_CA_BUNDLE to the file, or use judge=gemini"
            )
        super().__init__(config, features={JSON: "json|mime"} if config.structured_output else {})
        with warnings.catch_warnings():
            # The documentation says that it is no longer maintained.
            warnings.simplefilter("ignore", FutureWarning)
            self._sdk = import_sdk("google.generativeai", config.name)
        self._api_error = import_sdk("google.api_core.exceptions", config.name).GoogleAPICallError
        self._parse_error = import_sdk("google.protobuf.json_format", config.name).ParseError
        options = {"api_endpoint": config.base_url.rstrip("/")} if config.base_url else None
        self._sdk.configure(api_key=self._key, transport="rest", client_options=options)

    def close(self) -> None:
        """See `Judge.close`."""
        module = import_sdk("google.generativeai.client", self._config.name)
        module.get_default_generative_client().transport.close()

    def _send(self, prompt: JudgePrompt, features: Collection[str]) -> Any:
        model = self._sdk.GenerativeModel(self.model, system_instruction=prompt.system)
        settings: dict[str, Any] = {
            "temperature": self._config.temperature,
            "max_output_tokens": prompt.max_output_tokens,
            "candidate_count": 1,
        }
        if JSON in features:
            settings["response_mime_type"] = "application/json"
        return model.generate_content(
            prompt.user,
            generation_config=settings,
            safety_settings=dict.fromkeys(HARM_CATEGORIES, "BLOCK_NONE"),
            # By default the SDK retries for ten minutes.
            request_options={"retry": None, "timeout": self._config.timeout},
        )

    def _reply(self, response: Any) -> JudgeReply:
        usage = response.usage_metadata
        candidate = response.candidates[0] if response.candidates else None
        text = "".join(part.text for part in candidate.content.parts) if candidate else ""
        model = response.to_dict().get("model_version") or self.model
        # Thoughts are paid for, and counted in the total only.
        received = max(usage.total_token_count - usage.prompt_token_count, usage.candidates_token_count)
        reply = JudgeReply(text, model, usage.prompt_token_count, received)
        feedback = response.prompt_feedback
        if feedback.block_reason:
            raise JudgeFault(Fault.BLOCKED, feedback.block_reason.name, reply=reply)
        reason = getattr(candidate.finish_reason, "name", str(candidate.finish_reason)) if candidate else ""
        return finished_reply(reply, reason, blocked=BLOCKED_REASONS, truncated="MAX_TOKENS")

    def _fault(self, error: Exception) -> JudgeFault | None:
        if isinstance(error, self._parse_error):
            return malformed_fault(error)
        if not isinstance(error, self._api_error):
            return None
        wait = retry_after(getattr(error.response, "headers", None)) or retry_delay(error.details)
        return status_fault(int(error.code or 500), f"{error.message} {error.details or ''}", wait)
