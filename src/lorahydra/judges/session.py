"""What a trial has of its judge; for a single judge, with all that is common to its calls: limits, budget and prompts.

```python
session = SingleSession(config, make_judge(config), cache)
judgement = start_judging(session, [JudgeCase("2 + 2?", "4", "It is 4.")]).wait()
judgement.scores  # [100.0]
```
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod

from lorahydra.config.judge import JudgeConfig
from lorahydra.errors import JudgeSetupError
from lorahydra.judges.base import Fault, Judge, JudgeCase
from lorahydra.judges.cache import VerdictCache
from lorahydra.judges.limits import Budget, Purse, RateLimiter
from lorahydra.judges.prompt import PromptWriter

__all__ = ["JudgeSession", "SingleSession"]


class JudgeSession:
    """A judge, or a panel of several, with its money and (if verdicts are kept) cache; shared by a process's trials."""

    cache: VerdictCache | None
    """Where verdicts are kept."""

    def __init__(self, config: JudgeConfig, purse: Purse | None = None) -> None:
        self.config = config
        self.purse = purse or Purse(config.max_cost)
        self.writer = PromptWriter(config.rubric, config.prompt_wording)
        self.prompt_version = self.writer.version
        """Digest of the prompt's fixed texts and the rubric."""

    @property
    @abstractmethod
    def model(self) -> str:
        """The model that is asked, as the service names it; those of a panel are joined by ` + `."""

    @abstractmethod
    def close(self) -> None:
        """Close the connections."""


class SingleSession(JudgeSession):
    """One judge with its limits.

    Args:
        config: Its settings.
        judge: The judge.
        cache: Where its verdicts are kept.
        label: Its name in a panel.
        purse: The money that it shares with others; by default it has its own.
    """

    def __init__(
        self,
        config: JudgeConfig,
        judge: Judge,
        cache: VerdictCache | None,
        *,
        label: str = "",
        purse: Purse | None = None,
    ) -> None:
        super().__init__(config, purse)
        self.judge = judge
        self.label = label or config.name
        """What messages call the judge: its name, or its name in a panel."""
        self.group = f"judges.{label}" if label else "judge"
        """Where its settings are in the configuration."""
        self.cache = cache
        self.limiter = RateLimiter(config)
        self.budget = Budget(config, self.purse)
        self.is_tested = False
        """Whether it has passed the self-test."""
        self.last_reply = float("-inf")
        """When the service last replied anything (`time.monotonic`)."""

    @property
    def model(self) -> str:
        """See `JudgeSession.model`."""
        return self.judge.model

    def close(self) -> None:
        """See `JudgeSession.close`."""
        self.judge.close()

    def key(self, case: JudgeCase, repeat: int) -> str:
        """The cache's key for a verdict: a digest of everything that changes it; `repeat` counts from 0."""
        config, judge = self.config, self.judge
        settings = json.dumps([judge.identity, config.temperature, config.structured_output, config.options])
        texts = (case.question, case.reference, case.answer)
        content = [config.name, judge.model, settings, self.prompt_version, *texts, repeat]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def redact(self, text: str) -> str:
        """`text` without the judge's secrets."""
        for secret in self.judge.secrets:
            text = text.replace(secret, "***")
        return text

    def advice(self, fault: Fault) -> str:
        """What the user can do about a fault, to follow its message; empty if there is nothing."""
        group = self.group
        where = f" and {group}.base_url={self.config.base_url}" if self.config.base_url else ""
        variables = " or ".join(self.config.key_names)
        return {
            Fault.KEY_REFUSED: f"; check the key in {variables}" if variables else "",
            Fault.MODEL_UNKNOWN: f"; check {group}.model={self.judge.model}{where}",
            Fault.CERTIFICATE: f"; name the issuer's certificate in {group}.ca_bundle_file",
        }.get(fault, "")

    def crashed(self, error: Exception) -> JudgeSetupError:
        """The error to show when a judge breaks its contract, for example one of the user's own."""
        return JudgeSetupError(f"judge {self.label} failed: {self.redact(f'{type(error).__name__}: {error}')}")
