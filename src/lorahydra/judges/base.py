"""What a judge is: the protocol that every judge follows, what it is given and what it returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

__all__ = ["Fault", "Judge", "JudgeCase", "JudgeFault", "JudgePrompt", "JudgeReply", "Verdict"]


@dataclass(frozen=True)
class JudgeCase:
    """One answer to judge."""

    question: str
    reference: str
    """A good answer to the question."""
    answer: str
    """The model's answer."""


@dataclass(frozen=True)
class JudgePrompt:
    """One request to a judge, the same for every judge."""

    system: str
    """Role, rubric, scale and form of the reply."""
    user: str
    """The fenced question, reference and answer."""
    schema: Mapping[str, Any]
    """JSON schema of the reply: `{"reasoning": text, "scores": {criterion: 0…5}}`, in this order."""
    criteria: tuple[str, ...]
    """Names of the criteria."""
    case: JudgeCase
    """What the prompt was made from, for judges that are not language models."""
    max_output_tokens: int
    """Longest reply."""


@dataclass(frozen=True)
class JudgeReply:
    """What a judge returned."""

    text: str
    """The reply as it came, normally JSON of the prompt's schema."""
    model: str
    """The model that answered, as the service names it."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    fractions: bool = False
    """Whether the scores were computed and may be any number from 0 to 5. When a language model writes 0.8, it may mean
    0.8 of 1, so without this a score between 0 and 1 is a fault."""


@dataclass(frozen=True)
class Verdict:
    """A judge's opinion of one answer."""

    scores: Mapping[str, float]
    """0…5 for each criterion."""
    score: float
    """Weighted mean of the criteria as 0…100."""
    reasoning: str
    raw_reply: str
    model: str
    """The model that answered."""
    prompt_tokens: int
    completion_tokens: int
    prompt_version: str = ""
    """Digest of the prompt's fixed texts and the rubric, see `lorahydra.judges.prompt`."""
    latency: float = 0.0
    """Seconds of the call that brought it; 0 when it came from the cache."""


class Fault(StrEnum):
    """Why a call brought no verdict."""

    KEY_REFUSED = "key refused"
    QUOTA = "quota used up"
    MODEL_UNKNOWN = "model unknown"
    CERTIFICATE = "certificate not trusted"
    REQUEST_REFUSED = "request refused"
    RATE_LIMIT = "too many requests"
    SERVER = "server error"
    TIMEOUT = "no reply in time"
    CONNECTION = "no connection"
    BLOCKED = "blocked by the service"
    EMPTY = "empty reply"
    TRUNCATED = "reply cut short"
    UNPARSEABLE = "reply without a verdict"

    @property
    def is_transient(self) -> bool:
        """Whether the same call may succeed later."""
        return not self.ends_judging and self is not Fault.REQUEST_REFUSED

    @property
    def ends_judging(self) -> bool:
        """Whether every other call will fail in the same way, until the user changes something."""
        return self in (Fault.KEY_REFUSED, Fault.QUOTA, Fault.MODEL_UNKNOWN, Fault.CERTIFICATE)

    @property
    def is_outage(self) -> bool:
        """Whether the service as a whole may be at fault, rather than this one example."""
        return self in (Fault.RATE_LIMIT, Fault.SERVER, Fault.TIMEOUT, Fault.CONNECTION)


class JudgeFault(Exception):
    """One call brought no verdict.

    Args:
        fault: Why.
        message: One line: what the service said.
        retry_after: Seconds that the service asks to wait.
        reply: What came back, if anything did: its tokens are paid for.
    """

    def __init__(
        self, fault: Fault, message: str = "", *, retry_after: float | None = None, reply: JudgeReply | None = None
    ) -> None:
        super().__init__(f"{fault}: {message}" if message else str(fault))
        self.fault = fault
        self.message = message
        self.retry_after = retry_after
        self.reply = reply


@runtime_checkable
class Judge(Protocol):
    """A language model that judges answers, or anything that does the same.

    **Threads.** `ask` is called from several threads at once and must be safe for that; `judge.concurrency=1` is for
    judges that are not.

    **Failure.** `ask` either returns the reply as it came or raises `JudgeFault`; it never invents a reply, and never
    returns a blocked, truncated or empty one. It makes one attempt: retries, waiting, limits, the cache and the parsing
    of the reply belong to the caller and are the same for all judges. If the service names a time to wait,
    `JudgeFault.retry_after` carries it. `Fault` says which faults are tried again.

    **Time.** A call ends within `judge.timeout` seconds, or raises `Fault.TIMEOUT`.

    **Secrets.** Keys come from the environment variables that the config names. They must not appear in any message:
    the values in `secrets` are removed from whatever the caller shows.

    Subclass it to inherit the defaults below.
    """

    model: str
    """The model that is asked, as the service names it."""
    identity: str = ""
    """Whatever else changes verdicts (an address, a digest of weights): a part of the cache's key."""
    runs_here: bool = False
    """Whether it computes on this machine's processor, and so must not run beside training or generation."""
    secrets: tuple[str, ...] = ()
    """Values that must never be shown."""

    def ask(self, prompt: JudgePrompt) -> JudgeReply:
        """Send one prompt and return the reply.

        Raises:
            JudgeFault: There is no usable reply.
        """
        ...

    def close(self) -> None:
        """Close connections; `ask` is not called any more."""
