"""Making a study, or finding the one that goes on."""

from __future__ import annotations

import logging
import secrets
import time
from typing import TYPE_CHECKING, Any

import optuna
from optuna.exceptions import DuplicatedStudyError

from lorahydra.errors import StudyError
from lorahydra.sweep.optuna_warnings import quietly
from lorahydra.sweep.sampler_state import counting
from lorahydra.sweep.search_space import SearchSpace
from lorahydra.sweep.storage import open_storage, reading, shown, study_lock
from lorahydra.sweep.study_spec import check_same

if TYPE_CHECKING:
    from lorahydra.sweep.study_sweeper import StudySweeper

__all__ = ["COMMAND", "RESULT", "SPEC", "STUDY_ID", "TRIALS", "known_spec", "open_study", "unique_name"]

logger = logging.getLogger(__name__)

STUDY_ID = "lorahydra.id"
SPEC = "lorahydra.spec"
COMMAND = "lorahydra.command"
TRIALS = "lorahydra.n_trials"
RESULT = "lorahydra.result"
"""User attribute of a study that has ended: its winner and the test scores, as plain JSON."""


def unique_name(*parts: str) -> str:
    """A name for a new study: what it is about, when it began, and what keeps two of one second apart."""
    words = "-".join(part for part in parts if part)
    kept = "".join(char if char.isalnum() or char in ".-" else "-" for char in words).strip("-.")[:60].lower()
    return f"{kept or 'study'}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def open_study(sweeper: StudySweeper, space: SearchSpace) -> optuna.Study:
    """Make the study, or find it and check that its trials and the new ones can be compared.

    Raises:
        StudyError: Other settings than those it was begun with, or its store is away.
    """
    objective, url = sweeper.objective, sweeper.storage
    storage = open_storage(url)
    name = objective.study_name
    # Optuna prints on its own to stderr, beside the log.
    optuna.logging.disable_default_handler()
    arguments: Any = {"storage": storage, "sampler": counting(sweeper.sampler), "pruner": sweeper.pruner}
    with reading(url), study_lock(storage, name), quietly():
        try:
            study = optuna.create_study(study_name=name, directions=objective.directions, **arguments)  # type: ignore[arg-type]
            goes_on = False
        except DuplicatedStudyError:
            study = optuna.load_study(study_name=name, **arguments)
            goes_on = True
        _check_directions(study, objective.directions)
        spec = objective.spec(space)
        known = study.user_attrs.get(SPEC)
        if known is None:
            study.set_user_attr(STUDY_ID, secrets.token_hex(8))
            study.set_user_attr(SPEC, spec)
        else:
            check_same(name, known, spec)
            if not spec.keys() <= known.keys():  # digests that the first process did not know
                study.set_user_attr(SPEC, spec | known)
        if not objective.is_worker:
            study.set_user_attr(TRIALS, int(sweeper.n_trials))
            if (command := objective.command()) is not None and COMMAND not in study.user_attrs:
                study.set_user_attr(COMMAND, command)
    logger.info("Study %s %s (%s)", name, "goes on" if goes_on else "begins", shown(url))
    return study


def known_spec(name: str, url: str | None) -> dict[str, str]:
    """What a study began with; empty where there is none of that name yet, or its store is away."""
    try:
        with reading(url), quietly():
            storage = open_storage(url, create=False)
            found: dict[str, str] = storage.get_study_user_attrs(storage.get_study_id_from_name(name)).get(SPEC, {})
    except (KeyError, StudyError):
        return {}
    return found


def _check_directions(study: optuna.Study, wanted: list[str]) -> None:
    directions = [direction.name.lower() for direction in study.directions]
    if directions != wanted:
        raise StudyError(
            f"study {study.study_name} has the directions {', '.join(directions)}, and now they are "
            f"{', '.join(wanted)}: begin a new study with another name"
        )
