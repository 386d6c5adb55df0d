"""Studies in their database: making a new one, or opening one to resume it."""

from __future__ import annotations

import logging
import secrets
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.exceptions import DuplicatedStudyError
from optuna.samplers import BaseSampler

from lorahydra.errors import STUDY_KEPT, LorahydraError, StudyError
from lorahydra.names import STUDY_STORE, State
from lorahydra.sweep.compat import quietly
from lorahydra.sweep.halving import mark_begun
from lorahydra.sweep.objective import Objective
from lorahydra.sweep.ranking import directions_of
from lorahydra.sweep.sampler_state import counting
from lorahydra.sweep.search_space import SearchSpace
from lorahydra.sweep.settings import SweepSettings
from lorahydra.sweep.stages import end_stages
from lorahydra.sweep.stopping import go_on
from lorahydra.sweep.storage import open_storage, reading, shown, study_lock
from lorahydra.sweep.study_spec import SPEC, check_same
from lorahydra.sweep.trial_record import TrialRecord

__all__ = [
    "COMMAND",
    "RESULT",
    "SPEC",
    "STUDY_ID",
    "TRIALS",
    "is_concluded",
    "known_attributes",
    "open_study",
    "resume_command",
    "with_command",
]

logger = logging.getLogger(__name__)

STUDY_ID = "lorahydra.id"
COMMAND = "lorahydra.command"
TRIALS = "lorahydra.n_trials"
RESULT = "lorahydra.result"
"""User attribute of a study that has ended: its winner and the test scores, as plain JSON."""


def is_concluded(result: Mapping[str, Any], records: Sequence[TrialRecord]) -> bool:
    """Whether the result of a study is that of its present trials.

    A trial that had failed may be complete now, if its answers were judged again.
    """
    complete = sum(record.state is State.COMPLETE for record in records)
    finished = sum(record.counts for record in records)
    return result.get("finished") == finished and bool(result.get("complete", complete) == complete)


def open_study(settings: SweepSettings, objective: Objective, space: SearchSpace) -> optuna.Study:
    """Make the study, or open it and check that its trials and the new ones can be compared.

    Raises:
        StudyError: The study was begun with other settings, or its database cannot be used.
    """
    url, name = settings.storage, objective.study_name
    storage = open_storage(url)
    # Optuna prints to stderr by itself, beside the log.
    optuna.logging.disable_default_handler()
    assert isinstance(settings.sampler, BaseSampler), "the sampler has been fitted"
    arguments: Any = {"storage": storage, "sampler": counting(settings.sampler), "pruner": settings.pruner}
    directions: Any = objective.directions
    with reading(url), study_lock(storage, name), quietly():
        try:
            study, said = optuna.create_study(study_name=name, directions=directions, **arguments), "begins"
        except DuplicatedStudyError:
            study, said = optuna.load_study(study_name=name, **arguments), "is resumed"
        if (begun := directions_of(study)) != directions:
            raise StudyError(
                f"study {name} has the directions {', '.join(begun)}, and now they are {', '.join(directions)}: begin "
                "a new study with another name"
            )
        spec = objective.spec(space)
        begun_with = study.user_attrs.get(SPEC)
        if begun_with is None:
            study.set_user_attr(STUDY_ID, secrets.token_hex(8))
            mark_begun(study)
            study.set_user_attr(SPEC, spec)  # last: a study without it is begun again
        else:
            check_same(name, begun_with, spec)
            if not spec.keys() <= begun_with.keys():  # digests that the first process did not compute
                study.set_user_attr(SPEC, spec | begun_with)
        if not objective.is_worker:
            study.set_user_attr(TRIALS, settings.n_trials)
            go_on(study, settings.n_trials, objective.stop_rule)
            end_stages(study)  # those of a process that was killed
            if (command := objective.command()) is not None and COMMAND not in study.user_attrs:
                study.set_user_attr(COMMAND, command)
    logger.info("Study %s %s (%s)", name, said, shown(url))
    return study


def known_attributes(name: str, url: str | None) -> dict[str, Any]:
    """The user attributes of a study; empty if no study has this name, or its database cannot be used."""
    try:
        with reading(url), quietly():
            storage = open_storage(url, create=False)
            return dict(storage.get_study_user_attrs(storage.get_study_id_from_name(name)))
    except (KeyError, StudyError):
        return {}


def resume_command(name: str, url: str | None) -> str:
    """The command that resumes a study."""
    where = "" if url == STUDY_STORE else f" --storage {shlex.quote(shown(url))}"
    return f"lorahydra studies resume {shlex.quote(name)}{where}"


def with_command(error: LorahydraError, command: str) -> LorahydraError:
    """The error, extended by the command that resumes the study once the cause is solved."""
    if command in str(error):  # a worker has already said it
        return error
    error.args = (f"{error}{STUDY_KEPT}{command}", *error.args[1:])
    return error
