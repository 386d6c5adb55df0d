"""What the API and the page show: plain values, which become JSON as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar, Generic, Literal, TypeVar

from pydantic import ConfigDict

__all__ = [
    "DEMO_DATASET",
    "ENDED",
    "Answer",
    "ChoiceView",
    "DatasetChoice",
    "DatasetView",
    "DeletionPlan",
    "DeletionView",
    "Estimate",
    "ExampleView",
    "Examples",
    "FineTuneParams",
    "GoingDataset",
    "GoingFineTune",
    "JobState",
    "JobView",
    "JudgeView",
    "Kind",
    "LeaderboardRow",
    "LogTail",
    "MlflowLinks",
    "ModelView",
    "Page",
    "ProjectView",
]


T = TypeVar("T")
DEMO_DATASET: Literal["demo"] = "demo"
"""Stands for the shipped dataset where a dataset is chosen, and is its name."""
DatasetChoice = int | Literal["demo"] | None
"""A dataset's id, the demo dataset, or None: the project's newest dataset, and the demo dataset if it has none."""


class JobState(StrEnum):
    """Where a fine-tune is in its life."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"
    COMPLETE = "complete"
    FAILED = "failed"


ENDED = frozenset({JobState.CANCELLED, JobState.COMPLETE, JobState.FAILED})
"""States that a fine-tune leaves only when it is resumed."""


class _Documented:
    """Puts the docstrings of the fields below into OpenAPI."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(use_attribute_docstrings=True)


class Kind(StrEnum):
    """What can be deleted."""

    PROJECT = "project"
    DATASET = "dataset"
    FINE_TUNE = "fine_tune"


@dataclass(frozen=True)
class Page(Generic[T]):
    """A part of a list, newest first."""

    items: list[T]
    total: int
    """Length of the whole list."""
    limit: int
    offset: int


@dataclass(frozen=True)
class ProjectView(_Documented):
    """A project, with the numbers of its datasets and fine-tunes."""

    id: int
    name: str
    created: datetime
    datasets: int
    jobs: int


@dataclass(frozen=True)
class DatasetView(_Documented):
    """A dataset that passed the check."""

    id: int
    project: int
    name: str
    """Name of the uploaded file: text for people, never a path."""
    size: int
    """In bytes."""
    rows: int
    """Number of valid rows."""
    format: str
    """The detected column scheme, for example `question_answer`."""
    created: datetime
    report: Mapping[str, Any] = field(default_factory=dict)
    """What `lorahydra data check --json` says (`lorahydra.data.DataReport`); empty in lists."""


@dataclass(frozen=True)
class FineTuneParams(_Documented):
    """What a fine-tune is started with, by the API's names."""

    use_llm_judge: bool = True
    judge_model_id: str | None = None
    """A registered judge; None chooses the first one that is configured."""
    base_model_name: str | None = None
    """A packaged model, a folder of the models folder, or a hub id; None chooses the default model."""
    n_trials: int = 20
    """5 to 100."""


@dataclass(frozen=True)
class MlflowLinks(_Documented):
    """Where a fine-tune is in MLflow."""

    store: str
    """Address of the store, without its password."""
    study_run: str | None
    """Id of the study's run; None before the study has begun."""
    study_url: str | None
    """Page of the run; None without MLflow's UI or a run."""
    trials_url: str | None
    """Page of all trials, best first; None without MLflow's UI or a run."""


@dataclass(frozen=True)
class ChoiceView(_Documented):
    """Which trial won, why, and how sure that is, from the scores on the validation split (docs/choosing.md)."""

    winner: int
    """Number of the trial."""
    reason: str
    """`highest_score`, or `smaller_adapter`: as good as the trial with the highest mean, with a smaller adapter."""
    best: int
    """The trial with the highest mean."""
    winner_bytes: int | None
    best_bytes: int | None
    """Sizes of the weights of both adapters."""
    p_best: float
    """Probability that no other trial is better than the winner, 0 to 1."""
    set: list[int]
    """The trials that cannot be told from the best one, with 95 % confidence; the most probable first."""
    regret_bound: float
    """With 95 % confidence, no trial is better than the winner by more than this, in the unit of the score."""
    examples: int
    """Examples behind it; with a judge, those with a verdict."""
    sentence: str
    """All of this in English."""


@dataclass(frozen=True)
class JobView(_Documented):
    """A fine-tune: one study, which runs in a process of its own."""

    id: int
    project: int
    project_name: str
    name: str
    dataset: int | None
    """None is the shipped demo dataset."""
    dataset_name: str
    params: FineTuneParams
    """Parameters that were left out have the values that were chosen for them."""
    state: JobState
    place: int | None
    """Place in the queue, from 1; None unless queued."""
    study: str
    """Name of the study in the studies' store and in MLflow."""
    folder: str
    """Absolute path of the folder with the study's log and output."""
    trials_finished: int
    trials_wanted: int
    trial_current: int | None
    """Number of the running trial, as in the log."""
    best_score: float | None
    """`combined` of the best trial so far, 0 to 1."""
    best_trial: int | None
    best_params: Mapping[str, Any]
    baseline_score: float | None
    """`combined` of the base model on the test split; None before the fine-tune is complete."""
    test_score: float | None
    """`combined` of the winner on the test split; None before the fine-tune is complete."""
    gain: float | None
    """`test_score` less `baseline_score`, as a mean over test rows."""
    gain_low: float | None
    gain_high: float | None
    """Ends of the 95 % interval of `gain`."""
    gain_examples: int | None
    """Test rows behind `gain`; with a judge, those with a verdict on both models' predictions."""
    test_rows: int | None
    """Number of test rows; 0 if there is no test split, None before the fine-tune is complete."""
    verdict: str | None
    """Whether fine-tuning helped: `higher`, `lower`, `no_clear_difference` (the interval includes 0),
    `too_few_examples`, `no_baseline` or `no_test_rows`; None before the fine-tune is complete."""
    choice: ChoiceView | None
    """How the winner was chosen; None before the fine-tune is complete, or if trials cannot be compared."""
    seconds: float
    """Running time of all attempts."""
    seconds_left: float | None
    """An estimate; None before the first trial is complete, 0 at the end."""
    resumptions: int
    """How often it was continued after a crash."""
    failure: str | None
    """One line; None unless failed."""
    mlflow: MlflowLinks
    created: datetime
    started: datetime | None
    """Start of the first attempt."""
    ended: datetime | None
    can_cancel: bool
    can_resume: bool
    has_adapter: bool
    """Whether an adapter can be downloaded: the winner's, or that of the best trial so far."""
    notes: str = ""
    """What somebody has written about it: text of several lines."""


@dataclass(frozen=True)
class Answer(_Documented):
    """What a model answers."""

    answer: str
    prompt_tokens: int
    tokens: int
    """Of the answer, without the one that ended it."""
    is_complete: bool
    """False if it is as long as allowed."""


@dataclass(frozen=True)
class LeaderboardRow(_Documented):
    """One trial of a fine-tune."""

    rank: int | None
    """From 1, in the order of what chooses the winner, who is the first; None unless the trial is complete."""
    number: int
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


@dataclass(frozen=True)
class LogTail(_Documented):
    """The end of a fine-tune's log."""

    text: str
    size: int
    """Size of the whole log in bytes."""
    truncated: bool
    """Whether the log has more before this text."""


@dataclass(frozen=True)
class ExampleView(_Documented):
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
class Examples(_Documented):
    """Predictions of a fine-tune's best trial."""

    split: str
    """`test` (the winner, on rows that no trial saw) or `validation` (the best trial so far); empty without items."""
    trial: int | None
    items: list[ExampleView]
    total: int


@dataclass(frozen=True)
class JudgeView(_Documented):
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
class ModelView(_Documented):
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
class Estimate(_Documented):
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


@dataclass(frozen=True)
class GoingFineTune(_Documented):
    """A fine-tune that would be deleted."""

    id: int
    name: str
    state: JobState
    size: int
    """Size in bytes of its folder: adapters, checkpoints, predictions, log."""


@dataclass(frozen=True)
class GoingDataset(_Documented):
    """A dataset that would be deleted."""

    id: int
    name: str
    rows: int
    size: int
    """Size of its file in bytes."""


@dataclass(frozen=True)
class DeletionPlan(_Documented):
    """What a deletion would take with it."""

    kind: Kind
    id: int
    name: str
    fine_tunes: list[GoingFineTune]
    datasets: list[GoingDataset]
    running: list[int]
    """Fine-tunes that must be cancelled first."""
    cache_size: int
    """Size in bytes of the rows, tokens and verdicts that are cached for these datasets and are not needed any more."""
    runs: int
    """Number of runs in MLflow."""
    runs_size: int
    """Size of their artifacts in bytes."""
    registered_models: list[str]
    """Models in MLflow's registry that lose the versions made by these runs."""
    size: int
    """Bytes that become free."""
    digest: str
    """Differs if other things would go; a deletion that is given the digest then deletes nothing."""


@dataclass(frozen=True)
class DeletionView(_Documented):
    """A deletion that was asked for: what it takes cannot be seen any more, and is removed by and by."""

    id: int
    kind: Kind
    number: int
    """Id of what is deleted."""
    project: int
    size: int
    """Bytes that become free."""
    requested: datetime
    ended: datetime | None
    """When nothing was left; None as long as something is."""
    fault: str | None
    """Why it cannot go on now, in one line; it is tried again."""
