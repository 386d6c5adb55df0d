"""Judges many answers: retries, limits, cache and money, the same for every judge.

```python
session = JudgeSession(config, make_judge(config), cache)
judgement = start_judging(session, [JudgeCase("2 + 2?", "4", "It is 4.")]).result()
judgement.scores  # [100.0]
```
"""

from __future__ import annotations

import json

from lorahydra.config.judge import JudgeConfig
from lorahydra.judges.base import Judge, JudgeCase, JudgeFault, JudgeReply, Verdict
from lorahydra.judges.cache import VerdictCache, verdict_key
from lorahydra.judges.limits import Budget, RateLimiter
from lorahydra.judges.parsing import read_opinion
from lorahydra.judges.prompt import MAX_SCORE, PromptWriter

__all__ = ["JudgeSession"]


class JudgeSession:
    """One judge with its limits, cache and budget; shared by all trials of a process.

    Args:
        config: Limits, rubric and prices.
        judge: Who is asked.
        cache: Where verdicts are kept; None keeps none.
    """

    def __init__(self, config: JudgeConfig, judge: Judge, cache: VerdictCache | None) -> None:
        self.config = config
        self.judge = judge
        self.cache = cache
        self.writer = PromptWriter(config.rubric)
        self.limiter = RateLimiter(config)
        self.budget = Budget(config)
        self.is_tested = False
        """Whether it has passed the self-test."""
        self.last_reply = float("-inf")
        """When the service last replied anything (`time.monotonic`)."""

    @property
    def prompt_version(self) -> str:
        """Digest of prompt and rubric."""
        return self.writer.version

    def close(self) -> None:
        """Close the judge's connections."""
        self.judge.close()

    def key(self, case: JudgeCase, repeat: int) -> str:
        """The cache's key for a verdict."""
        config, judge = self.config, self.judge
        settings = json.dumps([judge.identity, config.temperature, config.structured_output, config.options])
        return verdict_key(config.name, judge.model, settings, self.prompt_version, case, repeat)

    def verdict(self, reply: JudgeReply, shown: JudgeCase, latency: float) -> Verdict:
        """Read a reply.

        Args:
            reply: What came back.
            shown: The texts that the judge was shown.
            latency: Seconds of the call.

        Raises:
            JudgeFault: There is no verdict in it.
        """
        # Scores that were computed are not copied from anywhere.
        quotable = None if reply.fractions else shown
        try:
            opinion = read_opinion(reply.text, self.writer.criteria, quotable, fractions=reply.fractions)
        except JudgeFault as fault:
            raise JudgeFault(fault.fault, fault.message, reply=reply) from fault
        weights = {name: criterion.weight for name, criterion in self.config.rubric.criteria.items()}
        total = sum(weights[name] * score for name, score in opinion.scores.items())
        return Verdict(
            scores=opinion.scores,
            score=100 * total / (MAX_SCORE * sum(weights.values())),
            reasoning=self.redact(opinion.reasoning),
            raw_reply=self.redact(reply.text),
            model=reply.model,
            prompt_version=self.prompt_version,
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
            latency=latency,
        )

    def redact(self, text: str) -> str:
        """`text` without the judge's secrets."""
        for secret in self.judge.secrets:
            text = text.replace(secret, "***")
        return text
