"""Opening a study's database, and the lock of a study that all its processes respect."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager

import optuna
import sqlalchemy
from optuna.storages import BaseStorage, InMemoryStorage
from sqlalchemy import exc

from lorahydra.errors import StudyError, StudyStoreError
from lorahydra.sweep.compat import database_of, forget_trials, quietly
from lorahydra.sweep.study_database import StudyDatabase
from lorahydra.utils import databases
from lorahydra.utils.files import writing

__all__ = [
    "GRACE_SECONDS",
    "HEARTBEAT_SECONDS",
    "address_of",
    "check_address",
    "end_lock",
    "open_storage",
    "reading",
    "shown",
    "study_lock",
    "study_transaction",
]

HEARTBEAT_SECONDS, GRACE_SECONDS = 30, 90
"""Time between heartbeats of a running trial, and the time without one after which a trial elsewhere is dead."""
TABLES = 0x6C6F7261
"""Number of the lock under which tables are made."""
SECONDS_TO_WAIT = 60
"""How long PostgreSQL's first answer may take."""
SECONDS_TO_WRITE = 600
"""How long SQLite waits for another process's write. A claim holds the file while the sampler and the user's search
space draw parameters, and a worker that gives up waiting loses its trial; but Ctrl-C is not heard meanwhile."""
KEY = "hydra.sweeper.storage"
ALLOWED = "a SQLite file (sqlite:///studies.db), PostgreSQL (postgresql://USER@HOST/NAME) or null for memory"


def open_storage(url: str | None, *, create: bool = True) -> BaseStorage:
    """The storage behind a URL such as `sqlite:///studies.db`, made if it does not exist; None is memory.

    Raises:
        ConfigError: The URL cannot be used.
        StudyError: The database cannot be reached, read or written.
        OutputError: The file's folder cannot be written.
    """
    if url is None:
        return InMemoryStorage()
    url = check_address(url)
    file = databases.sqlite_file(url)
    if file is not None:
        if not create and not file.is_file():
            raise StudyError(f"there is no study store {file}: give it with --storage, or go to its folder")
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
    seconds = SECONDS_TO_WAIT if file is None else SECONDS_TO_WRITE
    engine = databases.open_engine(url, KEY, seconds)
    try:
        # Two processes that make the tables of a new database at once would disturb each other.
        with _opening(url, engine), databases.database_lock(engine, TABLES), quietly():
            return StudyDatabase(
                url,
                engine_kwargs={"connect_args": databases.connect_args(url, seconds), "pool_pre_ping": True},
                heartbeat_interval=HEARTBEAT_SECONDS,
                grace_period=GRACE_SECONDS,
            )
    finally:
        engine.dispose()


def check_address(url: str) -> str:
    """The URL of a study's database as SQLAlchemy reads it.

    Raises:
        ConfigError: It is not the URL of a SQLite file or a PostgreSQL database.
    """
    return databases.checked_url(url, KEY, ALLOWED)


@contextmanager
def reading(url: str | None) -> Iterator[None]:
    """Turn any fault of the database into a `StudyStoreError` of one line."""
    try:
        yield
    except (exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
        message = databases.describe(cause or error)
        raise StudyStoreError(f"the study store {shown(url)} cannot be used: {message}") from error


@contextmanager
def _opening(url: str, engine: sqlalchemy.Engine) -> Iterator[None]:
    """Turn what Optuna says of the tables of a database (another version's, or MLflow's) into one line as well."""
    try:
        with reading(url):
            yield
    except RuntimeError as error:
        message = f"the study store {shown(url)} cannot be used: {databases.describe(error)}"
        with contextlib.suppress(exc.SQLAlchemyError):
            if {"experiments", "runs"} <= set(sqlalchemy.inspect(engine).get_table_names()):
                message = (
                    f"the study store {shown(url)} is MLflow's database: give studies another one, because both have a "
                    "table of the same name"
                )
        raise StudyStoreError(message) from error


def address_of(storage: BaseStorage) -> str | None:
    """The address of an open storage, valid in any folder and without its password; None for memory."""
    backend = database_of(storage)
    return None if backend is None else databases.absolute(shown(backend.url))


def shown(url: str | None) -> str:
    """The address without its password."""
    return "in memory" if url is None else databases.shown(url)


@contextmanager
def study_lock(storage: BaseStorage, study_name: str, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock of one study; a holder's death frees it.

    Raises:
        StudyError: The database cannot be reached.
        TimeoutError: Another process holds it and `wait` is false.
    """
    backend = database_of(storage)
    if backend is None:
        yield
        return
    with reading(backend.url), databases.database_lock(backend.engine, *_lock_of(study_name), wait=wait):
        yield


@contextmanager
def study_transaction(storage: BaseStorage, study_name: str, settled: Collection[int] = ()) -> Iterator[None]:
    """Hold the lock of one study, and write what this thread writes to it meanwhile as one transaction.

    Others see all of it when the lock is free, and nothing of it if this process dies before.

    Args:
        storage: The storage of the study.
        study_name: Its name.
        settled: Ids of running trials that need not be read again as long as they run.

    Raises:
        StudyError: The database cannot be reached.
    """
    backend = database_of(storage)
    if not isinstance(backend, StudyDatabase):
        with study_lock(storage, study_name):
            yield
        return
    transaction = databases.locked_transaction(backend.engine, *_lock_of(study_name))
    try:
        with reading(backend.url), transaction as connection, backend.joined(connection, settled):
            yield
    except BaseException:
        forget_trials(storage)  # what was read and written, but may not have been kept
        raise


def _lock_of(study_name: str) -> tuple[int, str]:
    """The number of a study's lock in PostgreSQL, and the end of its file's name beside SQLite."""
    number = int.from_bytes(hashlib.sha256(study_name.encode()).digest()[:8], "big", signed=True)
    return number, f".{number & 0xFFFFFFFF:08x}"


def end_lock(storage: BaseStorage, study_name: str, *, wait: bool = True) -> AbstractContextManager[None]:
    """The lock under which the winner of a study is named, which may take hours; as `study_lock`."""
    return study_lock(storage, f"the end of {study_name}", wait=wait)
