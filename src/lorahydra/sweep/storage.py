"""Opening a study's database, and a lock that all processes of a study respect.

SQLite takes the lock from a file beside the database, PostgreSQL and MySQL from the server, so that processes on
several machines share it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage
from sqlalchemy import exc

from lorahydra.errors import ConfigError, StudyError, StudyStoreError, causes
from lorahydra.sweep.optuna_warnings import quietly
from lorahydra.tracking.address import sqlite_file, sqlite_uri, with_driver
from lorahydra.utils.files import locked, writing

__all__ = ["HEARTBEAT_SECONDS", "absolute", "address_of", "open_storage", "reading", "shown", "study_lock"]

HEARTBEAT_SECONDS = 30
"""How often a running trial says that it lives; three times as long without is dead, on another machine."""
TABLES = 0x6C6F7261
"""Number of the lock under which tables are made."""
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
    url = with_driver(url)
    file = _sqlite_file(url)
    if file is not None:
        url = url if "?" in url else sqlite_uri(file)
        if not create and not file.is_file():
            raise StudyError(f"there is no study store {file}: give it with --storage, or go where it is")
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
    options = {"timeout": SECONDS_TO_WAIT} if file is not None else {}
    with _opening(url), _one_at_a_time(url, file), quietly():
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
        StudyStoreError: Instead of any of them.
    """
    try:
        yield
    except (exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
        found = str(getattr(cause, "orig", None) or cause or error).strip().splitlines()
        message = found[0] if found else type(error).__name__
        raise StudyStoreError(f"the study store {shown(url)} cannot be used: {message}") from error


@contextmanager
def _opening(url: str) -> Iterator[None]:
    """The same, and what only opening can find.

    Raises:
        ConfigError: Its driver is not installed.
        StudyStoreError: Its tables are of another version.
    """
    try:
        with reading(url):
            yield
    except ImportError as error:
        # Optuna puts an error of its own in front.
        names = [found.name for found in causes(error) if isinstance(found, ImportError) and found.name]
        package = DRIVERS.get(names[-1], names[-1]) if names else "its package"
        raise ConfigError(f"the study store {shown(url)} needs a driver: pip install {package}") from error
    except RuntimeError as error:
        if _is_mlflows(url):
            raise StudyStoreError(
                f"the study store {shown(url)} is MLflow's database: give one of its own, both have a table of the "
                "same name"
            ) from error
        raise StudyStoreError(f"the study store {shown(url)} cannot be used: {str(error).splitlines()[0]}") from error


def _is_mlflows(url: str) -> bool:
    """Whether the tables of a database are MLflow's."""
    engine = sqlalchemy.create_engine(url)
    try:
        tables = set(sqlalchemy.inspect(engine).get_table_names())
    except exc.SQLAlchemyError:
        return False
    finally:
        engine.dispose()
    return {"experiments", "runs"} <= tables


def address_of(storage: BaseStorage) -> str | None:
    """The address of an open storage from any folder, without its password; None for memory."""
    backend = getattr(storage, "_backend", storage)  # create_study wraps a database in a cache
    return absolute(shown(backend.url)) if isinstance(backend, RDBStorage) else None


def absolute(url: str) -> str:
    """The address as it is from any folder."""
    file = _sqlite_file(url)
    return url if file is None else sqlite_uri(file.absolute())


def shown(url: str | None) -> str:
    """The address without its password."""
    if url is None:
        return "in memory"
    address = _parsed(url)
    file = sqlite_file(url)
    return sqlite_uri(file) if file is not None else address.render_as_string(hide_password=True)


def _parsed(url: str) -> sqlalchemy.URL:
    try:
        address = sqlalchemy.make_url(url)
        dialect = address.get_backend_name()
    except (exc.ArgumentError, ValueError) as error:
        # What cannot be parsed may hold a password anywhere.
        value = f"={url}" if "@" not in url else ""
        raise ConfigError(
            f"hydra.sweeper.storage{value} is not allowed: give a database URL, for example sqlite:///studies.db"
        ) from error
    if dialect not in ("sqlite", "postgresql", "mysql", "mariadb"):
        raise ConfigError(f"hydra.sweeper.storage={dialect}://… is not allowed: use SQLite, PostgreSQL or MySQL")
    return address


def _sqlite_file(url: str) -> Path | None:
    address = _parsed(url)
    if address.get_backend_name() != "sqlite":
        return None
    if not address.database or address.database == ":memory:" or address.database.startswith("file:"):
        raise ConfigError("hydra.sweeper.storage names no file: use sqlite:///studies.db, or null for memory")
    return sqlite_file(url) or Path(address.database)


@contextmanager
def _one_at_a_time(url: str, file: Path | None) -> Iterator[None]:
    """Two processes that make the tables of a new database at once would disturb each other."""
    if file is not None:
        with locked(file):
            yield
        return
    engine = sqlalchemy.create_engine(url)
    try:
        with (
            engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
            _held(connection, _parsed(url).get_backend_name(), TABLES),
        ):
            yield
    finally:
        engine.dispose()


@contextmanager
def _held(connection: Any, dialect: str, number: int) -> Iterator[None]:
    take, give = _server_lock(dialect, number)
    connection.execute(take)
    try:
        yield
    finally:
        connection.execute(give)


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
    file = _sqlite_file(backend.url)
    number = int.from_bytes(hashlib.sha256(study_name.encode()).digest()[:8], "big", signed=True)
    if file is not None:
        with locked(file.with_name(f"{file.name}.{number & 0xFFFFFFFF:08x}")):
            yield
        return
    with reading(backend.url):
        connection: Any = backend.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    try:
        with _held(connection, _parsed(backend.url).get_backend_name(), number):
            yield
    finally:
        connection.close()


def _server_lock(dialect: str, number: int) -> tuple[Any, Any]:
    if dialect == "postgresql":
        take, give = "SELECT pg_advisory_lock(:number)", "SELECT pg_advisory_unlock(:number)"
        return sqlalchemy.text(take).bindparams(number=number), sqlalchemy.text(give).bindparams(number=number)
    name = f"lorahydra-{number & 0xFFFFFFFFFFFFFFFF:016x}"
    take, give = "SELECT GET_LOCK(:name, -1)", "SELECT RELEASE_LOCK(:name)"
    return sqlalchemy.text(take).bindparams(name=name), sqlalchemy.text(give).bindparams(name=name)
