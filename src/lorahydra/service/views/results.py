"""What a fine-tune has found, and what its model answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lorahydra.service.views.base import Documented

__all__ = ["Answer", "ExampleView", "Examples", "LeaderboardRow", "LogTail"]


@dataclass(frozen=True)
class LeaderboardRow(Documented):
    """One trial of a fine-tune."""

    rank: int | None
    """From 1, in the order of what chooses the winner, who is the first; None unless the trial is complete."""
    number: int
    """The trial's number in the log, in MLflow and in files, where trials count from 0."""
    trial: int
    """Its number on the page, where they count from 1; a trial that repeats an interrupted one has its number."""
    state: str
    """`complete`, `pruned`, `failed`, `running` or `interrupted`."""
    params: Mapping[str, Any]
    """Searched hyperparameters by their config key."""
    combined: float | None
    combined_low: float | None
    combined_high: float | None
    """Ends of the 95 % interval of `combined`."""
    bertscore_f1: float | None
    judge_score: float | None
    """0 to 100."""
    loss: float | None
    seconds: float | None
    failure: str | None
    mlflow_url: str | None
    final_combined: float | None = None
    """`combined` after the race for the judge's verdicts, on more examples; None if the trial was not left then. Where
    there is one, it chose the winner, and not `combined`."""
    final_combined_low: float | None = None
    final_combined_high: float | None = None
    """Ends of the 95 % interval of `final_combined`."""
    final_judge_score: float | None = None
    """0 to 100."""
    final_examples: int | None = None
    """Number of judged examples behind it."""
    is_winner: bool = False
    """Whether the fine-tune chose this trial; false for all before its end."""
    p_best: float | None = None
    """Probability that no other trial is better, 0 to 1; None before the end of the fine-tune."""
    in_set: bool | None = None
    """Whether it cannot be told from the best trial, with 95 % confidence; None before the end of the fine-tune."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Means of the other metrics that the server was started with, by name."""


@dataclass(frozen=True)
class LogTail(Documented):
    """The end of a fine-tune's log."""

    text: str
    size: int
    """Size of the whole log in bytes."""
    truncated: bool
    """Whether the log has more before this text."""


@dataclass(frozen=True)
class ExampleView(Documented):
    """One request with the predictions for it."""

    prompt: str
    reference: str
    answer: str
    """Prediction of the fine-tuned model."""
    bertscore_f1: float | None
    judge_score: float | None
    judge_reason: str | None
    baseline_answer: str | None
    """Prediction of the base model."""
    baseline_bertscore_f1: float | None
    baseline_judge_score: float | None


@dataclass(frozen=True)
class Examples(Documented):
    """Predictions of a fine-tune's best trial."""

    split: str
    """`test` (the winner, on rows that no trial saw) or `validation` (the best trial so far); empty without items."""
    trial: int | None
    items: list[ExampleView]
    total: int


@dataclass(frozen=True)
class Answer(Documented):
    """What a model answers."""

    answer: str
    prompt_tokens: int
    tokens: int
    """Of the answer, without the one that ended it."""
    is_complete: bool
    """False if it is as long as allowed."""
