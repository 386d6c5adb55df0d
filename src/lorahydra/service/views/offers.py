"""What can be chosen before a fine-tune is started, and what it would take."""

from __future__ import annotations

from dataclasses import dataclass

from lorahydra.service.views.base import Documented, Reason

__all__ = ["Estimate", "JudgeView", "ModelView"]


@dataclass(frozen=True)
class JudgeView(Documented):
    """A judge, and whether it can be called from this server."""

    id: str
    """Its name as `judge_model_id`."""
    model: str
    """The model that it calls."""
    is_configured: bool
    missing: str | None
    """What it lacks and how to provide that, in one line; None if it is configured."""
    is_default: bool
    """Whether it is used when a request names none."""
    prompt_price: float | None
    """In USD per million tokens; None if it is unknown or 0."""
    completion_price: float | None


@dataclass(frozen=True)
class ModelView(Documented):
    """A base model that can be named."""

    name: str
    """Its name as `base_model_name`."""
    kind: str
    """`packaged`, `folder` (in the server's models folder) or `hub`."""
    is_available: bool
    """Whether its files are on this machine."""
    missing: str | None
    """What to do to get them, in one line; None if they are here."""
    is_default: bool


@dataclass(frozen=True)
class Estimate(Documented):
    """Roughly what a fine-tune will take, before it is started."""

    trials: int
    train_rows: int
    validation_rows: int
    test_rows: int
    judge: str | None
    """The judge that will be called; None without a judge."""
    judge_calls: int
    """An upper limit, because verdicts that are in the cache need no call."""
    judge_prompt_tokens: int
    judge_completion_tokens: int
    judge_cost: float | None
    """In USD; None if the prices are unknown."""
    seconds: float | None
    """None if nothing is known of the model's size."""
    basis: str
    """What the time is derived from, in one line."""
    warnings: list[str]
    """What should be known before the start, one line each."""
    warning_reasons: list[Reason]
    """What the warnings say, in the same order."""
