"""How MLflow's UI shows an experiment of lorahydra without any set-up: a description, and saved views of its trials.

The UI keeps saved views in tags of the experiment; the address `…/runs?viewStateShareKey=KEY` opens one. It opens
experiments on a page of traces unless the address says that models are trained.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import zlib
from collections.abc import Collection
from typing import Any

from lorahydra.config.schema import TrackingConfig
from lorahydra.errors import ConfigError, TrackingError
from lorahydra.names import EVAL, MAIN_HYPERPARAMETERS, OBJECTIVE, Kind, Metric, Score, Tag, scored
from lorahydra.tracking.children import clause
from lorahydra.tracking.operations import NOTE_TAG, encode, now
from lorahydra.tracking.store import opened, talking_to
from lorahydra.utils.databases import shown
from lorahydra.utils.markdown import experiment_link

__all__ = [
    "TRAINING",
    "find_experiment",
    "forget_views",
    "furnish",
    "furnish_study",
    "save_study_view",
    "view_query",
    "view_url",
]

logger = logging.getLogger(__name__)

VIEW_KEY = "lorahydra-trials"
VIEW_NAME = "Trials, best first"
VIEW_PREFIX = "mlflow.sharedViewState."
VIEW_TAG = f"{VIEW_PREFIX}{VIEW_KEY}"
KIND_TAG = "mlflow.experimentKind"
TRAINING = "workflowType=machine_learning"
"""What an address says to get the pages about training."""
COLUMNS = (
    *(f"metrics.`{name}`" for name in (OBJECTIVE, scored(EVAL, Score.GAIN))),
    f"tags.`{Tag.STATE}`",
    *(f"params.`{name}`" for name in (*MAIN_HYPERPARAMETERS, "model.name_or_path")),
    *(f"metrics.`{scored(EVAL, score)}`" for score in (Score.BERTSCORE_F1, Score.JUDGE_SCORE, Score.LOSS)),
    *(f"metrics.`{scored(EVAL, score)}`" for score in (Score.COMBINED_LOW, Score.COMBINED_HIGH)),
    *(f"metrics.`{Metric.TIME_TOTAL}`", f"tags.`{Tag.STUDY}`", f"tags.`{Tag.FINE_TUNE}`", f"tags.`{Tag.DATA_FILE}`"),
)
"""What matters first; the UI would order them by name."""
WIDTH = 110
"""Pixels of a column."""


CURVES = "^train/(loss|learning_rate|grad_norm)|^eval/(loss|combined|gain)$"
"""Which of the many charts are shown first; a regular expression in the box above them."""


def furnish(client: Any, experiment: Any) -> None:
    """Give an `mlflow.entities.Experiment` its description and its view unless it has them: they may be changed."""
    is_trial = f"tags.`{Tag.KIND}` != '{Kind.STUDY}'"
    link = experiment_link(VIEW_NAME, experiment.experiment_id, view_query())
    description = f"Each study is a run, with its trials nested under it. All trials in a table: {link}"
    tags = {KIND_TAG: "finetuning", VIEW_TAG: _view(VIEW_NAME, is_trial), NOTE_TAG: description}
    missing = {name: value for name, value in tags.items() if name not in experiment.tags}
    try:
        with talking_to(client.tracking_uri):
            for name, value in missing.items():
                client.set_experiment_tag(experiment.experiment_id, name, value)
    except TrackingError as error:
        # The view is not needed, and a server may refuse it to users who can only add runs.
        logger.debug("The experiment's view was not saved: %s", error)


def furnish_study(client: Any, experiment_id: str, study: str, title: str | None = None) -> None:
    """Save the view of a study's trials; `title` is what people call the study."""
    filtered = f"{clause(Tag.STUDY, study)} AND tags.`{Tag.KIND}` = '{Kind.TRIAL}'"
    view = _view(f"Trials of {title or study}", filtered)
    try:
        with talking_to(client.tracking_uri):
            client.set_experiment_tag(experiment_id, f"{VIEW_PREFIX}{_study_key(study)}", view)
    except TrackingError as error:
        logger.debug("The study's view was not saved: %s", error)


def save_study_view(config: TrackingConfig, experiment_id: str, study: str, title: str | None = None) -> None:
    """The same for a study of an older version, which has none."""
    with opened(config) as client:
        furnish_study(client, experiment_id, study, title)


def forget_views(client: Any, studies: Collection[str]) -> None:
    """Delete the views of studies, whose titles may be names that people gave, in all experiments."""
    from mlflow.entities import ViewType

    keys = {f"{VIEW_PREFIX}{_study_key(study)}" for study in studies}
    for experiment in client.search_experiments(view_type=ViewType.ALL):
        for key in keys & experiment.tags.keys():
            client.delete_experiment_tag(experiment.experiment_id, key)


def find_experiment(config: TrackingConfig) -> str:
    """The id of an experiment; `ConfigError` if the store does not have it."""
    with opened(config) as client:
        experiment = client.get_experiment_by_name(config.experiment_name)
        if experiment is not None and experiment.lifecycle_stage == "active":
            return str(experiment.experiment_id)
        names = sorted(experiment.name for experiment in client.search_experiments())
    store = shown(client.tracking_uri)
    raise ConfigError(f"the MLflow store {store} has no experiment {config.experiment_name}: it has {', '.join(names)}")


def view_url(server: str, experiment_id: str, study: str | None = None) -> str:
    """The page of a study's trials, or those of a whole experiment, best first.

    Args:
        server: Address of an MLflow server or UI.
        experiment_id: The experiment.
        study: Name of the study, which must have its view.
    """
    return f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs?{view_query(study)}"


def view_query(study: str | None = None) -> str:
    """What follows the address of an experiment's runs to open a view, for links within MLflow's UI."""
    key = VIEW_KEY if study is None else _study_key(study)
    return f"viewStateShareKey={key}&{TRAINING}"


def _study_key(study: str) -> str:
    return f"{VIEW_KEY}-{hashlib.sha256(study.encode('utf-8', 'replace')).hexdigest()[:12]}"


def _view(name: str, search: str) -> str:
    """The value of a view's tag; the UI sorts and filters by what is left out here as it always does."""
    state = {
        "searchFilter": search,
        "orderByKey": f"metrics.`{OBJECTIVE}`",
        "orderByAsc": False,
        "selectedColumns": list(COLUMNS),
        "columnOrder": list(COLUMNS),
        "columnWidths": dict.fromkeys(COLUMNS, WIDTH),
        "chartsSearchFilter": CURVES,
    }
    packed = base64.b64encode(zlib.compress(encode(state).encode())).decode()
    saved = {"name": name, "createdAt": now(), "updatedAt": now(), "state": f"deflate;{packed}"}
    return json.dumps(saved)
