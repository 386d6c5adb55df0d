"""How MLflow's UI shows an experiment of lorahydra without any set-up: a saved view of its trials, best first.

The UI keeps saved views in tags of the experiment; the address `…/runs?viewStateShareKey=KEY` opens one.
"""

from __future__ import annotations

import base64
import json
import logging
import zlib
from typing import Any

from lorahydra.config.schema import TrackingConfig
from lorahydra.errors import ConfigError, TrackingError
from lorahydra.names import EVAL, MAIN_HYPERPARAMETERS, OBJECTIVE, Kind, Metric, Score, Tag, scored
from lorahydra.tracking.operations import encode, now
from lorahydra.tracking.store import opened, talking_to
from lorahydra.utils.databases import shown

__all__ = ["VIEW_KEY", "find_experiment", "furnish", "view_url"]

logger = logging.getLogger(__name__)

VIEW_KEY = "lorahydra-trials"
VIEW_NAME = "Trials, best first"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW_KEY}"
KIND_TAG = "mlflow.experimentKind"
COLUMNS = (
    *(f"metrics.`{name}`" for name in (OBJECTIVE, scored(EVAL, Score.GAIN))),
    *(f"params.`{name}`" for name in (*MAIN_HYPERPARAMETERS, "model.name_or_path")),
    *(f"metrics.`{scored(EVAL, score)}`" for score in (Score.BERTSCORE_F1, Score.JUDGE_SCORE, Score.LOSS)),
    *(f"metrics.`{scored(EVAL, score)}`" for score in (Score.COMBINED_LOW, Score.COMBINED_HIGH)),
    *(f"metrics.`{Metric.TIME_TOTAL}`", f"tags.`{Tag.STUDY}`", f"tags.`{Tag.STATE}`"),
)
"""What matters first; the UI would order them by name."""
WIDTH = 110
"""Pixels of a column."""


CURVES = "^train/(loss|learning_rate|grad_norm)|^eval/(loss|combined|gain)$"
"""Which of the many charts are shown first; a regular expression in the box above them."""


def furnish(client: Any, experiment: Any) -> None:
    """Give an `mlflow.entities.Experiment` its view unless it has one, which somebody may have changed."""
    tags = {KIND_TAG: "finetuning", VIEW_TAG: _view()}
    missing = {name: value for name, value in tags.items() if name not in experiment.tags}
    try:
        with talking_to(client.tracking_uri):
            for name, value in missing.items():
                client.set_experiment_tag(experiment.experiment_id, name, value)
    except TrackingError as error:
        # The view is not needed, and a server may refuse it to users who can only add runs.
        logger.debug("The experiment's view was not saved: %s", error)


def find_experiment(config: TrackingConfig) -> str:
    """The id of an experiment; `ConfigError` if the store does not have it."""
    with opened(config) as client:
        experiment = client.get_experiment_by_name(config.experiment_name)
        if experiment is not None and experiment.lifecycle_stage == "active":
            return str(experiment.experiment_id)
        names = sorted(experiment.name for experiment in client.search_experiments())
    store = shown(client.tracking_uri)
    raise ConfigError(f"the MLflow store {store} has no experiment {config.experiment_name}: it has {', '.join(names)}")


def view_url(server: str, experiment_id: str) -> str:
    """The page of an experiment's trials, best first, under the address of an MLflow server or UI."""
    return f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs?viewStateShareKey={VIEW_KEY}"


def _view() -> str:
    state = {
        "searchFilter": f"tags.`{Tag.KIND}` != '{Kind.STUDY}'",
        "orderByKey": f"metrics.`{OBJECTIVE}`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": list(COLUMNS),
        "columnOrder": list(COLUMNS),
        "columnWidths": dict.fromkeys(COLUMNS, WIDTH),
        "runsHiddenMode": "FIRST_10_RUNS",
        "groupBy": None,
        "chartsSearchFilter": CURVES,
    }
    packed = base64.b64encode(zlib.compress(encode(state).encode())).decode()
    saved = {"name": VIEW_NAME, "createdAt": now(), "updatedAt": now(), "state": f"deflate;{packed}"}
    return json.dumps(saved)
