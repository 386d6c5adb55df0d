"""Deleting studies from their database."""

from __future__ import annotations

import logging
from collections.abc import Collection

import optuna

from lorahydra.sweep.storage import open_storage, reading, study_lock
from lorahydra.utils.databases import erase_deleted, sqlite_file

__all__ = ["delete_studies"]

logger = logging.getLogger(__name__)

SECONDS_TO_ERASE = 30


def delete_studies(storage: str, names: Collection[str]) -> None:
    """Delete studies with their trials for good: of a SQLite store, nothing is left in free pages either.

    Those that do not exist are left out, so that another call finishes what was interrupted.

    Raises:
        LorahydraError: The store cannot be used.
    """
    file = sqlite_file(storage)
    if file is not None and not file.is_file():
        return
    opened = open_storage(storage, create=False)
    for name in names:
        with study_lock(opened, name), reading(storage):
            if name in optuna.get_all_study_names(opened):
                optuna.delete_study(study_name=name, storage=opened)
                logger.info("Study %s is deleted", name)
    opened.remove_session()
    if file is not None:
        erase_deleted(file, SECONDS_TO_ERASE)
