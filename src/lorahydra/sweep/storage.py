"""Opening a study's database, and a lock that all processes of a study respect.

SQLite takes the lock from a file beside the database, PostgreSQL and MySQL from the server, so that processes on
several machines share it.
"""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage
from sqlalchemy import exc

from lorahydra.errors import ConfigError, StudyError
from lorahydra.storage import locked, writing

__all__ = ["HEARTBEAT_SECONDS", "open_storage", "reading", "shown", "study_lock"]

HEARTBEAT_SECONDS = 30
"""How often a running trial says that it lives; three times as long without is dead, on another machine."""
SECONDS_TO_WAIT = 60
"""How long SQLite waits for another process's write."""
DRIVERS = {
    "psycopg2": "psycopg2-binary",
    "psycopg": "'psycopg[binary]'",
    "MySQLdb": "mysqlclient",
    "pymysql": "pymysql",
}


def open_storage(url: str | None, *, create: bool = True) -> BaseStorage:
    """The storage behind a URL; None is memory.

    Args:
        url: For example `sqlite:///studies.db` or `postgresql://user@host/studies`.
        create: Make what does not exist yet.

    Raises:
        ConfigError: The URL cannot be used.
        StudyError: The database cannot be reached, read or written.
        OutputError: The file's folder cannot be written.
    """
    if url is None:
        return InMemoryStorage()
    address = _parsed(url)
    file = _sqlite_file(address)
    if file is not None:
        if not create and not file.is_file():
            raise StudyError(f"there is no study store {file}: give it with --storage, or go where it is")
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
    options = {"timeout": SECONDS_TO_WAIT} if file is not None else {}
    with reading(url), _one_at_a_time(file), warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return RDBStorage(
            url,
            engine_kwargs={"connect_args": options, "pool_pre_ping": True},
            heartbeat_interval=HEARTBEAT_SECONDS,
            grace_period=3 * HEARTBEAT_SECONDS,
        )


@contextmanager
def reading(url: str | None) -> Iterator[None]:
    """Turn a fault of the database into one line.

    Raises:
        ConfigError: Its driver is not installed.
        StudyError: Anything else.
    """
    try:
        yield
    except ImportError as error:
        package = DRIVERS.get(error.name or "", error.name)
        raise ConfigError(f"the study store {shown(url)} needs a driver: pip install {package}") from error
    except (exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
        found = str(getattr(cause, "orig", None) or cause or error).strip().splitlines()
        raise StudyError(f"the study store {shown(url)} cannot be used: {found[0] if found else error}") from error
    except RuntimeError as error:
        # Optuna's word for tables of another version.
        if "storage" not in str(error) and "schema" not in str(error):
            raise
        raise StudyError(f"the study store {shown(url)} cannot be used: {str(error).splitlines()[0]}") from error


def shown(url: str | None) -> str:
    """The address without its password."""
    return "in memory" if url is None else _parsed(url).render_as_string(hide_password=True)


def _parsed(url: str) -> sqlalchemy.URL:
    try:
        address = sqlalchemy.make_url(url)
        dialect = address.get_backend_name()
    except exc.ArgumentError as error:
        raise ConfigError(
            f"hydra.sweeper.storage={url} is not allowed: give a database URL, for example sqlite:///studies.db"
        ) from error
    if dialect not in ("sqlite", "postgresql", "mysql", "mariadb"):
        raise ConfigError(f"hydra.sweeper.storage={dialect}://… is not allowed: use SQLite, PostgreSQL or MySQL")
    return address


def _sqlite_file(address: sqlalchemy.URL) -> Path | None:
    if address.get_backend_name() != "sqlite":
        return None
    if not address.database or address.database == ":memory:" or address.database.startswith("file:"):
        raise ConfigError("hydra.sweeper.storage names no file: use sqlite:///studies.db, or null for memory")
    return Path(address.database)


def _one_at_a_time(file: Path | None) -> AbstractContextManager[None]:
    """Two processes that make the tables of a new file at once would disturb each other."""
    return contextlib.nullcontext() if file is None else locked(file)


@contextmanager
def study_lock(storage: BaseStorage, study_name: str) -> Iterator[None]:
    """Hold the lock of one study; a holder's death frees it.

    Raises:
        StudyError: The database cannot be reached.
    """
    backend = getattr(storage, "_backend", storage)  # create_study wraps a database in a cache
    if not isinstance(backend, RDBStorage):
        yield
        return
    address = _parsed(backend.url)
    file = _sqlite_file(address)
    number = int.from_bytes(hashlib.sha256(study_name.encode()).digest()[:8], "big", signed=True)
    if file is not None:
        with locked(file.with_name(f"{file.name}.{number & 0xFFFFFFFF:08x}")):
            yield
        return
    with reading(backend.url):
        connection: Any = backend.engine.connect()
    try:
        take, give = _server_lock(address.get_backend_name(), number)
        with reading(backend.url):
            connection.execute(take)
        try:
            yield
        finally:
            connection.execute(give)
    finally:
        connection.close()


def _server_lock(dialect: str, number: int) -> tuple[Any, Any]:
    if dialect == "postgresql":
        take, give = "SELECT pg_advisory_lock(:number)", "SELECT pg_advisory_unlock(:number)"
        return sqlalchemy.text(take).bindparams(number=number), sqlalchemy.text(give).bindparams(number=number)
    name = f"lorahydra-{number & 0xFFFFFFFFFFFFFFFF:016x}"
    take, give = "SELECT GET_LOCK(:name, -1)", "SELECT RELEASE_LOCK(:name)"
    return sqlalchemy.text(take).bindparams(name=name), sqlalchemy.text(give).bindparams(name=name)
