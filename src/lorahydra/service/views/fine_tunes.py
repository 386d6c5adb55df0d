"""Projects, datasets and fine-tunes as they are now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from lorahydra.service.views.base import Documented, Reason

__all__ = [
    "DEMO_DATASET",
    "ENDED",
    "BaselineView",
    "ChoiceView",
    "DatasetChoice",
    "DatasetView",
    "FineTuneParams",
    "JobState",
    "JobView",
    "MlflowLinks",
    "ProjectView",
]

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


@dataclass(frozen=True)
class ProjectView(Documented):
    """A project, with the numbers of its datasets and fine-tunes."""

    id: int
    name: str
    created: datetime
    datasets: int
    jobs: int


@dataclass(frozen=True)
class DatasetView(Documented):
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
class FineTuneParams(Documented):
    """What a fine-tune is started with, by the API's names."""

    use_llm_judge: bool = True
    judge_model_id: str | None = None
    """A registered judge; None chooses the first one that is configured."""
    base_model_name: str | None = None
    """A packaged model, a folder of the models folder, or a hub id; None chooses the default model."""
    n_trials: int = 20
    """5 to 100."""


@dataclass(frozen=True)
class MlflowLinks(Documented):
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
class FewShotView(Documented):
    """The fine-tuned model beside the base model with training examples in its prompt, on the test split."""

    shots: int
    """Number of examples in each prompt."""
    score: float | None
    """`combined` of the base model with them."""
    gain: float | None
    """`test_score` less `score`, as a mean over test rows."""
    gain_low: float | None
    gain_high: float | None
    """Ends of the 95 % interval of `gain`."""
    verdict: str
    """Whether fine-tuning is better: `higher`, `lower`, `no_clear_difference` or `too_few_examples`."""


@dataclass(frozen=True)
class ForgettingView(Documented):
    """What fine-tuning changed on general texts and plain instructions (docs/scores.md)."""

    verdict: str
    """`something` if the model forgot what can be measured, or `nothing`."""
    loss: float | None
    """How much higher its loss on the texts is, in nats per token."""
    loss_low: float | None
    loss_high: float | None
    """Ends of the 95 % interval of `loss`."""
    checks: int
    """Number of instructions."""
    checks_before: int
    """How many of them the base model follows."""
    checks_after: int
    """How many of them the fine-tuned model follows."""


@dataclass(frozen=True)
class ChoiceView(Documented):
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
class BaselineView(Documented):
    """Scores of the base model as it is, to compare trials with."""

    combined: float | None
    combined_low: float | None
    combined_high: float | None
    """Ends of the 95 % interval of `combined`."""
    bertscore_f1: float | None
    judge_score: float | None
    """0 to 100."""


@dataclass(frozen=True)
class JobView(Documented):
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
    test_low: float | None
    test_high: float | None
    """Ends of the 95 % interval of `test_score`."""
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
    """An estimate of the trials; None before the first one has ended and after the last one, 0 at the end."""
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
    can_continue: bool
    """Whether it can go on with more trials: it has ended, and has fewer than the most that are allowed."""
    has_adapter: bool
    """Whether an adapter can be downloaded: the winner's, or that of the best trial so far."""
    failure_reason: Reason | None = None
    """What `failure` says; None if that is not a known sentence."""
    notes: str = ""
    """Notes about it, of several lines."""
    few_shot: FewShotView | None = None
    """None unless the server was started with `--set evaluation.few_shot=N`."""
    forgetting: ForgettingView | None = None
    """None unless the server was started with `--set evaluation.forgetting=true`."""
    stage: str | None = None
    """What is done while no trial runs: `preparing` (libraries, data and the model are loaded), `waiting` (its workers
    wait in the queue of a cluster, or are starting there), and after the last
    trial `choosing` (the trials are compared), `judging` (the best ones get more verdicts), `repeating` (they are
    trained with other seeds), `testing` (the winner is scored on the test split) and `saving`."""
    stage_seconds: float | None = None
    """For how long already."""
    validation_baseline: BaselineView | None = None
    """The base model's scores on the validation split; None before the first trial is complete."""
