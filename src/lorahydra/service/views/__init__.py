"""What the API and the page show: plain values, which become JSON as they are."""

from __future__ import annotations

from lorahydra.service.views.base import Page, Reason
from lorahydra.service.views.comparison import ComparisonView, DifferenceView
from lorahydra.service.views.deletions import DeletionPlan, DeletionView, GoingDataset, GoingFineTune, Kind
from lorahydra.service.views.fine_tunes import (
    DEMO_DATASET,
    ENDED,
    BaselineView,
    ChoiceView,
    DatasetChoice,
    DatasetView,
    FewShotView,
    FineTuneParams,
    ForgettingView,
    JobState,
    JobView,
    MlflowLinks,
    ProjectView,
)
from lorahydra.service.views.offers import Estimate, JudgeView, ModelView
from lorahydra.service.views.results import Answer, Examples, ExampleView, LeaderboardRow, LogTail

__all__ = [
    "DEMO_DATASET",
    "ENDED",
    "Answer",
    "BaselineView",
    "ChoiceView",
    "ComparisonView",
    "DatasetChoice",
    "DatasetView",
    "DeletionPlan",
    "DeletionView",
    "DifferenceView",
    "Estimate",
    "ExampleView",
    "Examples",
    "FewShotView",
    "FineTuneParams",
    "ForgettingView",
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
    "Reason",
]
