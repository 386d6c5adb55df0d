"""What the service tells about itself: plain values that the API and the page show as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Generic, TypeVar

__all__ = [
    "ENDED",
    "DatasetView",
    "Estimate",
    "ExampleView",
    "Examples",
    "FineTuneParams",
    "JobState",
    "JobView",
    "JudgeView",
    "LeaderboardRow",
    "LogTail",
    "MlflowLinks",
    "ModelView",
    "Page",
    "ProjectView",
]


T = TypeVar("T")


class JobState(StrEnum):
    """Where a job is in its life."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"
    COMPLETE = "complete"
    FAILED = "failed"


ENDED = frozenset({JobState.CANCELLED, JobState.COMPLETE, JobState.FAILED})
"""States that a job leaves only by being resumed."""


@dataclass(frozen=True)
class Page(Generic[T]):
    """A part of a list, the newest first."""

    items: list[T]
    total: int
    """Length of the whole list."""
    limit: int
    offset: int


@dataclass(frozen=True)
class ProjectView:
    """A project: datasets and the fine-tunes made with them."""

    id: int
    name: str
    created: datetime
    datasets: int
    """How many it has."""
    jobs: int


@dataclass(frozen=True)
class DatasetView:
    """A dataset that was checked and taken."""

    id: int
    project: int
    name: str
    """Name of the file as it was uploaded; text for people, never a path."""
    size: int
    """Bytes."""
    rows: int
    """Valid rows in the file."""
    format: str
    """Column scheme that was detected, for example `question_answer`."""
    created: datetime
    report: Mapping[str, Any] = field(default_factory=dict)
    """What `lorahydra data check --json` says (`lorahydra.data.DataReport`); empty in lists."""


@dataclass(frozen=True)
class FineTuneParams:
    """What a fine-tune is started with, under the API's names."""

    use_llm_judge: bool = True
    judge_model_id: str | None = None
    """A registered judge; None chooses the first that is configured."""
    base_model_name: str | None = None
    """Packaged model, folder in the models folder, or hub id; None chooses the default model."""
    n_trials: int = 20
    """5 to 100."""


@dataclass(frozen=True)
class MlflowLinks:
    """Where a job is in MLflow."""

    store: str
    """Address of the store, without a password."""
    study_run: str | None
    """Id of the study's run; None before it was opened."""
    study_url: str | None
    """Its page; None without a UI or a run."""
    trials_url: str | None
    """The page of all trials, best first; None without a UI or before there are any."""


@dataclass(frozen=True)
class JobView:
    """A fine-tune: one study, run as a process of its own."""

    id: int
    project: int
    project_name: str
    name: str
    dataset: int | None
    """None is the shipped demo dataset."""
    dataset_name: str
    params: FineTuneParams
    """With the choices that were made for what was left out."""
    state: JobState
    place: int | None
    """Place in the queue, from 1; None unless queued."""
    study: str
    """Name in the studies' store and in MLflow."""
    folder: str
    """Absolute path: log and output of the study."""
    trials_finished: int
    trials_wanted: int
    trial_current: int | None
    """Number of the trial that is running now, as the log says it."""
    best_score: float | None
    """`combined` of the best trial so far, 0 to 1."""
    best_trial: int | None
    best_params: Mapping[str, Any]
    baseline_score: float | None
    """`combined` of the untuned model on the test split; None before the job is complete."""
    test_score: float | None
    """`combined` of the winner on the test split; None before the job is complete."""
    seconds: float
    """Time in which it ran, all attempts together."""
    seconds_left: float | None
    """Estimated; None where nothing is known yet, 0 once ended."""
    resumptions: int
    """How often it was gone on with after a crash."""
    failure: str | None
    """One line; None unless failed."""
    mlflow: MlflowLinks
    created: datetime
    started: datetime | None
    """Of the first attempt."""
    ended: datetime | None
    """None while it has not ended."""
    can_cancel: bool
    can_resume: bool
    has_adapter: bool
    """Whether there is an adapter to download: the winner's, or that of the best trial so far."""


@dataclass(frozen=True)
class LeaderboardRow:
    """One trial of a job."""

    rank: int | None
    """From 1; None unless complete."""
    number: int
    state: str
    """`complete`, `pruned`, `failed`, `running` or `interrupted`."""
    params: Mapping[str, Any]
    """What was searched, by its key in the config."""
    combined: float | None
    combined_low: float | None
    combined_high: float | None
    """Ends of the 95 % interval."""
    bertscore_f1: float | None
    judge_score: float | None
    """0 to 100."""
    loss: float | None
    seconds: float | None
    failure: str | None
    mlflow_url: str | None


@dataclass(frozen=True)
class LogTail:
    """The end of a job's log."""

    text: str
    size: int
    """Bytes in the whole log."""
    truncated: bool
    """Whether something stands before the text."""


@dataclass(frozen=True)
class ExampleView:
    """One request and what was answered to it."""

    prompt: str
    reference: str
    answer: str
    """Of the tuned model."""
    bertscore_f1: float | None
    judge_score: float | None
    judge_reason: str | None
    baseline_answer: str | None
    """Of the untuned model."""
    baseline_bertscore_f1: float | None
    baseline_judge_score: float | None


@dataclass(frozen=True)
class Examples:
    """Answers of a job's best trial."""

    split: str
    """`test` (the winner, on rows that no trial saw) or `validation` (the best trial so far); empty without answers."""
    trial: int | None
    items: list[ExampleView]
    total: int


@dataclass(frozen=True)
class JudgeView:
    """A judge, and whether it can be asked from this server."""

    id: str
    """What `judge_model_id` calls it."""
    model: str
    """The model it asks."""
    is_configured: bool
    missing: str | None
    """One line: what is missing and how it is mended; None when configured."""
    is_default: bool
    """Whether it is taken where a request names none."""
    prompt_price: float | None
    """USD for a million tokens; None where unknown or free."""
    completion_price: float | None


@dataclass(frozen=True)
class ModelView:
    """A base model that can be named."""

    name: str
    """What `base_model_name` calls it."""
    kind: str
    """`packaged`, `folder` (in the server's models folder) or `hub`."""
    is_available: bool
    """Whether its files are on this machine."""
    missing: str | None
    """One line: what to do where they are not; None when available."""
    is_default: bool


@dataclass(frozen=True)
class Estimate:
    """What a fine-tune will take, roughly, before it is started."""

    trials: int
    train_rows: int
    validation_rows: int
    test_rows: int
    judge: str | None
    """The judge that will be asked; None without one."""
    judge_calls: int
    """At most: what is in the cache of verdicts is not asked for again."""
    judge_prompt_tokens: int
    judge_completion_tokens: int
    judge_cost: float | None
    """USD; None where prices are unknown."""
    seconds: float | None
    """None where nothing is known of the model's size."""
    basis: str
    """What the time is taken from, in one line."""
