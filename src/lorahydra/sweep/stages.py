"""What a study does while none of its trials runs, kept in the study so that others can tell it."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import optuna

from lorahydra.names import Stage

__all__ = ["begin_stage", "end_stages", "stage_of"]

logger = logging.getLogger("lorahydra.sweep")

STAGE = "lorahydra.stage"
"""User attribute of a study: the name of its stage, and when it began."""
SAID = {
    Stage.WAITING: "its workers wait in the queue of the cluster, or are starting there",
    Stage.CHOOSING: "the trials are compared",
    Stage.JUDGING: "the best trials get more verdicts of the judge",
    Stage.REPEATING: "settings that cannot be told apart are trained with other seeds",
    Stage.TESTING: "the winner and the untuned model are scored on the test split",
    Stage.SAVING: "the adapter and the results are saved",
}


def begin_stage(study: optuna.Study, stage: Stage) -> None:
    """Say what the study does now."""
    logger.info("Study %s: %s", study.study_name, SAID[stage])
    study.set_user_attr(STAGE, {"name": stage.value, "since": time.time()})


def end_stages(study: optuna.Study, only: Stage | None = None) -> None:
    """The study has ended, or runs trials again; with `only`, nothing else than this stage has ended."""
    facts = study.user_attrs.get(STAGE)
    if facts and only in (None, facts["name"]):
        study.set_user_attr(STAGE, {})


def stage_of(attributes: Mapping[str, Any]) -> tuple[Stage, float] | None:
    """The stage of a study with these user attributes, and when it began (seconds since the epoch)."""
    facts = attributes.get(STAGE)
    return (Stage(facts["name"]), float(facts["since"])) if facts else None
