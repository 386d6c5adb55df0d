"""`judge=gemini_legacy`: Google Gemini by google-generativeai, which is no longer maintained but still in use."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from typing import Any

from lorahydra.config.judge import JudgeConfig
from lorahydra.errors import ConfigError
from lorahydra.judges.base import Fault, Judge, JudgeFault, JudgePrompt, JudgeReply
from lorahydra.judges.gemini import BLOCKED_REASONS, HARM_CATEGORIES, retry_delay
from lorahydra.judges.http import (
    OptionalFeatures,
    check_options,
    finished_reply,
    import_sdk,
    malformed_fault,
    read_response,
    require_model,
    retry_after,
    sdk_faults,
    status_fault,
)

__all__ = ["GeminiLegacyJudge"]

JSON = "JSON"


class GeminiLegacyJudge(Judge):
    """Asks Gemini over REST for JSON.

    The SDK's settings (key, address) belong to the whole process: of two such judges, the newer one's count.

    Args:
        config: Knows no `options`.

    Raises:
        ConfigError: No model, an option, or certificate settings, which this SDK cannot have.
        JudgeSetupError: The SDK or the key is missing.
    """

    def __init__(self, config: JudgeConfig) -> None:
        check_options(config, ())
        if config.ca_bundle_file is not None or not config.verify_ssl_certs:
            raise ConfigError(
                "judge.ca_bundle_file and judge.verify_ssl_certs=false are not possible with gemini_legacy: "
                "set REQUESTS_CA_BUNDLE to the file, or use judge=gemini"
            )
        self.model = require_model(config)
        self.identity = config.base_url or ""
        key = config.require_api_key()
        self.secrets = (key,)
        with warnings.catch_warnings():
            # That it is no longer maintained is said in the documentation.
            warnings.simplefilter("ignore", FutureWarning)
            self._sdk = _import("google.generativeai", config.name)
        self._api_error = _import("google.api_core.exceptions", config.name).GoogleAPICallError
        self._parse_error = _import("google.protobuf.json_format", config.name).ParseError
        options = {"api_endpoint": config.base_url.rstrip("/")} if config.base_url else None
        self._sdk.configure(api_key=key, transport="rest", client_options=options)
        self._config = config
        self._features = OptionalFeatures({JSON: "json|mime"} if config.structured_output else {})

    def ask(self, prompt: JudgePrompt) -> JudgeReply:
        """See `Judge.ask`."""
        return self._features.ask(lambda features: self._send(prompt, features))

    def close(self) -> None:
        """See `Judge.close`."""
        module = _import("google.generativeai.client", self._config.name)
        module.get_default_generative_client().transport.close()

    def _send(self, prompt: JudgePrompt, features: Collection[str]) -> JudgeReply:
        model = self._sdk.GenerativeModel(self.model, system_instruction=prompt.system)
        settings: dict[str, Any] = {
            "temperature": self._config.temperature,
            "max_output_tokens": prompt.max_output_tokens,
            "candidate_count": 1,
        }
        if JSON in features:
            settings["response_mime_type"] = "application/json"
        with sdk_faults(self._fault):
            response = model.generate_content(
                prompt.user,
                generation_config=settings,
                safety_settings=dict.fromkeys(HARM_CATEGORIES, "BLOCK_NONE"),
                # Left to itself, the SDK tries again for ten minutes.
                request_options={"retry": None, "timeout": self._config.timeout},
            )
            return read_response(response, self._reply)

    def _reply(self, response: Any) -> JudgeReply:
        usage = response.usage_metadata
        candidate = response.candidates[0] if response.candidates else None
        text = "".join(part.text for part in candidate.content.parts) if candidate else ""
        told = response.to_dict().get("model_version")
        # Thoughts are paid for and only in the total.
        received = max(usage.total_token_count - usage.prompt_token_count, usage.candidates_token_count)
        reply = JudgeReply(text, told or self.model, usage.prompt_token_count, received)
        feedback = response.prompt_feedback
        if feedback.block_reason:
            raise JudgeFault(Fault.BLOCKED, feedback.block_reason.name, reply=reply)
        reason = getattr(candidate.finish_reason, "name", str(candidate.finish_reason)) if candidate else ""
        return finished_reply(reply, reason, blocked=BLOCKED_REASONS, cut="MAX_TOKENS")

    def _fault(self, error: Exception) -> JudgeFault | None:
        if isinstance(error, self._parse_error):
            return malformed_fault(error)
        if not isinstance(error, self._api_error):
            return None
        wait = retry_after(getattr(error.response, "headers", None)) or retry_delay(error.details)
        return status_fault(int(error.code or 500), f"{error.message} {error.details or ''}", wait)


def _import(module: str, judge: str) -> Any:
    return import_sdk(module, "google-generativeai", "gemini-legacy", judge)
