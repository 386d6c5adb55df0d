"""Cancelling a study, on whatever machines its processes run: a mark in its database, which all of them watch.

The mark is a new word each time, and a process ends when it differs from the one with which it began. So nobody has to
remove the mark before the study is resumed, and a worker that still waits in a cluster's queue ends when it starts.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import optuna
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from lorahydra.sweep.compat import database_of, storage_of
from lorahydra.sweep.workers import CANCELLED, is_worker
from lorahydra.utils.interrupts import interrupted

__all__ = ["begun_with", "cancel", "cancelled_with", "ending_when_cancelled", "raise_if_cancelled"]

logger = logging.getLogger("lorahydra.sweep")

MARK = "lorahydra.cancelled"
"""User attribute of a study."""
SECONDS_BETWEEN_LOOKS = 5.0


def cancel(study: optuna.Study) -> None:
    """End all processes of the study: they give their trials back, and the study can be resumed."""
    study.set_user_attr(MARK, secrets.token_hex(8))


def cancelled_with(study: optuna.Study) -> str:
    """The mark of the last time that the study was cancelled; empty if it never was."""
    return str(study.user_attrs.get(MARK, ""))


def begun_with(study: optuna.Study) -> str:
    """The mark with which this process begins; that of a worker is the one with which its command began."""
    return os.environ.get(CANCELLED, "") if is_worker() else cancelled_with(study)


def raise_if_cancelled(study: optuna.Study, mark: str) -> None:
    """Raise `KeyboardInterrupt` if the study was cancelled since a process began with `mark`."""
    if cancelled_with(study) != mark:
        logger.warning("Study %s was cancelled", study.study_name)
        raise KeyboardInterrupt


@contextmanager
def ending_when_cancelled(study: optuna.Study) -> Iterator[None]:
    """Interrupt this process, as Ctrl-C does, when the study is cancelled.

    Raises:
        KeyboardInterrupt: It is cancelled.
    """
    if database_of(storage_of(study)) is None:
        yield
        return
    mark = begun_with(study)
    left = threading.Event()

    def look() -> None:
        while not left.wait(SECONDS_BETWEEN_LOOKS) and not interrupted():
            # A database that cannot be reached for long is an error of the trial.
            with suppress(SQLAlchemyError, StorageInternalError):
                if cancelled_with(study) != mark and not left.is_set():
                    logger.warning("Study %s was cancelled", study.study_name)
                    os.kill(os.getpid(), signal.SIGINT)
                    return

    if is_worker() and cancelled_with(study) != mark:
        logger.warning("Study %s was cancelled before this worker began", study.study_name)
        raise KeyboardInterrupt
    threading.Thread(target=look, daemon=True).start()
    try:
        yield
    finally:
        left.set()
