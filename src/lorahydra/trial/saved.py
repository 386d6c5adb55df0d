"""A trial's predictions in its output folder, which can be judged again without training or generating.

The file is written before the trial waits for the judge, so that neither an unreachable judge nor a `kill -9` loses
expensive work.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorahydra.config.compose import restored_config
from lorahydra.config.schema import ExperimentConfig
from lorahydra.errors import ConfigError, OutputError
from lorahydra.evaluation import EvaluationSet, Predictions
from lorahydra.metrics.bertscore import BertScores
from lorahydra.names import ANSWERS_FILE
from lorahydra.tracking.address import resolve
from lorahydra.trial.predict import TrialPredictions
from lorahydra.utils.databases import shown
from lorahydra.utils.files import atomic_file, writing

__all__ = ["SavedTrial", "forget_trial", "load_trial", "not_saved", "save_trial"]

VERSION = 1


@dataclass(frozen=True)
class SavedTrial:
    """A trial as it is saved in its output folder."""

    folder: Path
    run_id: str
    config: ExperimentConfig
    predictions: TrialPredictions
    loss: float = math.nan
    """Validation loss after training; NaN if it is not known."""
    seconds: float = 0.0
    """Wall time of the trial up to here."""
    study: str | None = None
    """The study that it belongs to; None for a trial outside a study, or if an earlier version wrote the file."""
    storage: str | None = None
    """Address of the study's database, without a password; None for one in memory."""


def forget_trial(folder: Path) -> None:
    """Remove the predictions of an earlier trial in the same folder."""
    with writing(folder):
        (folder / ANSWERS_FILE).unlink(missing_ok=True)


def save_trial(trial: SavedTrial) -> None:
    """Write a trial into its folder."""
    config, predictions = trial.config, trial.predictions
    tracking = dataclasses.replace(config.tracking, uri=shown(resolve(config.tracking.uri)))
    examples = predictions.examples
    content = {
        "version": VERSION,
        "run_id": trial.run_id,
        "config": dataclasses.asdict(dataclasses.replace(config, tracking=tracking)),
        "study": None if trial.study is None else {"name": trial.study, "storage": trial.storage},
        "steps": predictions.steps,
        "loss": trial.loss,
        "seconds": trial.seconds,
        "examples": {"texts": list(examples.texts), "references": list(examples.references), "digest": examples.digest},
        "tuned": _content(predictions.tuned),
        "untuned": None if predictions.baseline is None else _content(predictions.baseline),
        "few_shot": None if predictions.few_shot is None else _content(predictions.few_shot),
    }
    with atomic_file(trial.folder / ANSWERS_FILE) as temporary:
        # In ASCII, so that a lone surrogate in somebody's data does no harm.
        temporary.write_text(json.dumps(content), encoding="ascii")


def load_trial(folder: Path, *, tracking_uri: str | None = None) -> SavedTrial:
    """Read a trial back from its output folder.

    Its MLflow store has the address `tracking_uri` if it has moved or needs a password; passwords are not saved.
    """
    path = folder / ANSWERS_FILE
    try:
        content = json.loads(path.read_text(encoding="ascii"))
        if content["version"] != VERSION:
            raise OutputError(f"{path} was written by another version of lorahydra")
        predictions = TrialPredictions(
            examples=EvaluationSet(prompts=[], **content["examples"]),
            tuned=_predictions(content["tuned"]),
            baseline=None if content["untuned"] is None else _predictions(content["untuned"]),
            # An earlier version did not write it.
            few_shot=None if content.get("few_shot") is None else _predictions(content["few_shot"]),
            steps=content["steps"],
        )
        loss, seconds = content.get("loss", math.nan), content.get("seconds", 0.0)
        home = content.get("study") or {"name": None, "storage": None}
        study, storage = home["name"], home["storage"]
        settings, run_id = content["config"], content["run_id"]
        if tracking_uri is not None:
            settings["tracking"]["uri"] = tracking_uri
        uri = settings["tracking"]["uri"]
    except FileNotFoundError as error:
        raise not_saved(folder) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise OutputError(f"{path} cannot be read ({type(error).__name__}: {error}): run the trial again") from error
    if ":***@" in uri:
        raise ConfigError(f"the password of the MLflow store {uri} was not kept: give the address with --uri")
    return SavedTrial(folder, run_id, restored_config(settings), predictions, loss, seconds, study, storage)


def not_saved(folder: Path) -> OutputError:
    """The error for a folder without predictions."""
    return OutputError(
        f"{folder} has no {ANSWERS_FILE}: give the output folder of a trial with a judge that has generated its "
        "predictions"
    )


def _content(predictions: Predictions) -> dict[str, Any]:
    content = dataclasses.asdict(predictions)
    # The name that the file has had since its first version.
    return content | {"cut": content.pop("truncated")}


def _predictions(content: dict[str, Any]) -> Predictions:
    bertscore, truncated = BertScores(**content.pop("bertscore")), content.pop("cut")
    return Predictions(bertscore=bertscore, truncated=truncated, **content)
