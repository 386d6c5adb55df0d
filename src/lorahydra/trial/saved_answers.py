"""The answers of a trial, kept beside its adapter: what is needed to judge them again without training or generating.

`answers.json` in the output folder is written before the judge is waited for, so that neither a judge that is away nor
a `kill -9` loses what was expensive.
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
from lorahydra.evaluation import Answers, EvaluationSet
from lorahydra.metrics.bertscore import BertScores
from lorahydra.names import ANSWERS_FILE
from lorahydra.tracking.address import resolve
from lorahydra.utils.databases import shown
from lorahydra.utils.files import atomic_file, writing

__all__ = [
    "HomeStudy",
    "SavedTrial",
    "TrialAnswers",
    "forget_answers",
    "load_answers",
    "no_answers",
    "save_answers",
]

VERSION = 1


@dataclass(frozen=True)
class TrialAnswers:
    """What the tuned and the untuned model answered."""

    examples: EvaluationSet
    tuned: Answers
    untuned: Answers | None
    """None when the untuned model was not asked."""
    steps: int
    """Optimiser steps behind the tuned model."""
    loss: float = math.nan
    """Validation loss after training; NaN where it is not known."""
    seconds: float = 0.0
    """Wall time of the trial up to here."""


@dataclass(frozen=True)
class HomeStudy:
    """The study that a trial belongs to."""

    name: str
    storage: str | None
    """Address of its database, without a password; None for one in memory."""


@dataclass(frozen=True)
class SavedTrial:
    """A trial as its output folder knows it."""

    folder: Path
    run_id: str
    config: ExperimentConfig
    answers: TrialAnswers
    study: HomeStudy | None = None
    """None for a trial of its own, and where an earlier version wrote the answers."""


def forget_answers(folder: Path) -> None:
    """Remove the answers of an earlier trial in the same folder."""
    with writing(folder):
        (folder / ANSWERS_FILE).unlink(missing_ok=True)


def save_answers(
    folder: Path, run_id: str, config: ExperimentConfig, answers: TrialAnswers, study: HomeStudy | None = None
) -> None:
    """Write the answers and whose they are.

    Raises:
        OutputError: The folder cannot be written.
    """
    config = dataclasses.replace(
        config, tracking=dataclasses.replace(config.tracking, uri=shown(resolve(config.tracking.uri)))
    )
    content = {
        "version": VERSION,
        "run_id": run_id,
        "config": dataclasses.asdict(config),
        "study": None if study is None else dataclasses.asdict(study),
        "steps": answers.steps,
        "loss": answers.loss,
        "seconds": answers.seconds,
        "examples": {
            "texts": list(answers.examples.texts),
            "references": list(answers.examples.references),
            "digest": answers.examples.digest,
        },
        "tuned": dataclasses.asdict(answers.tuned),
        "untuned": None if answers.untuned is None else dataclasses.asdict(answers.untuned),
    }
    with atomic_file(folder / ANSWERS_FILE) as temporary:
        # In ASCII, so that a lone surrogate in somebody's data does no harm.
        temporary.write_text(json.dumps(content), encoding="ascii")


def load_answers(folder: Path, *, tracking_uri: str | None = None) -> SavedTrial:
    """Read them back.

    Args:
        folder: A trial's output folder.
        tracking_uri: Address of its MLflow store, where it has moved or needs a password, which is not kept.

    Raises:
        OutputError: There are no answers, or they cannot be read.
        ConfigError: The store's address had a password.
    """
    path = folder / ANSWERS_FILE
    try:
        content = json.loads(path.read_text(encoding="ascii"))
        if content["version"] != VERSION:
            raise OutputError(f"{path} was written by another version of lorahydra")
        answers = TrialAnswers(
            examples=EvaluationSet(prompts=[], **content["examples"]),
            tuned=_answers(content["tuned"]),
            untuned=None if content["untuned"] is None else _answers(content["untuned"]),
            steps=content["steps"],
            loss=content.get("loss", math.nan),
            seconds=content.get("seconds", 0.0),
        )
        study = None if content.get("study") is None else HomeStudy(**content["study"])
        settings, run_id = content["config"], content["run_id"]
        if tracking_uri is not None:
            settings["tracking"]["uri"] = tracking_uri
        uri = settings["tracking"]["uri"]
    except FileNotFoundError as error:
        raise no_answers(folder) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise OutputError(f"{path} cannot be read ({type(error).__name__}: {error}): run the trial again") from error
    if ":***@" in uri:
        raise ConfigError(f"the password of the MLflow store {uri} was not kept: give the address with --uri")
    return SavedTrial(folder, run_id, restored_config(settings), answers, study)


def no_answers(folder: Path) -> OutputError:
    """The error for a folder without answers."""
    return OutputError(
        f"{folder} has no {ANSWERS_FILE}: give the output folder of a trial with a judge that got as far as answers"
    )


def _answers(content: dict[str, Any]) -> Answers:
    return Answers(**content | {"bertscore": BertScores(**content["bertscore"])})
