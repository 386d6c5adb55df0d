"""Databases by address: which are supported, how they are opened, and a lock that all their users respect.

Studies, runs and the service are kept in SQLite files or in PostgreSQL.

MLflow percent-encodes the path in an address that it makes (`sqlite:////home/%D0%9C%D0%BE%D0%B8%20data/mlflow.db`),
and people do not. `sqlite_file` reads both; `sqlite_uri` writes what SQLAlchemy and MLflow read.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, unquote_plus, urlsplit

from lorahydra.errors import ConfigError, OutputError
from lorahydra.utils.files import locked
from lorahydra.utils.network_files import network_file_system

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

__all__ = [
    "absolute",
    "checked_url",
    "connect_args",
    "database_lock",
    "describe",
    "erase_deleted",
    "has_password",
    "is_driver_error",
    "local_path",
    "locked_transaction",
    "network_database",
    "open_engine",
    "shown",
    "sqlite_file",
    "sqlite_uri",
]

DRIVERS = {"psycopg2": "'lorahydra[postgresql]'", "psycopg": "'psycopg[binary]'"}
"""PostgreSQL's drivers, and what `pip install` takes for each."""
EXPLAINED = {
    "attempt to write a readonly database": "it is read-only: change the permissions of the file and its folder",
    "unable to open database file": "it cannot be opened: change the permissions of the file and its folder",
    "file is not a database": "the file is not a SQLite database: give another file",
    "database is locked": "another program keeps it locked",
    "database or disk is full": "the disk is full",
}
"""What SQLite says, in words that tell what to do."""


def checked_url(url: str, key: str, allowed: str) -> str:
    """The address of a database in the form that SQLAlchemy reads, with its driver.

    Args:
        url: For example `sqlite:///studies.db` or `postgresql://user@host/studies`.
        key: The setting that has the address, for messages.
        allowed: What that setting takes, for messages.

    Raises:
        ConfigError: It is not the address of a SQLite file or of a PostgreSQL database.
    """
    import sqlalchemy
    from sqlalchemy import exc

    url = url.strip()
    try:
        parsed = sqlalchemy.make_url(url)
        dialect = parsed.get_backend_name()
    except (exc.ArgumentError, ValueError) as error:
        raise ConfigError(f"{key}={shown(url)} is not the address of a database: give {allowed}") from error
    if dialect not in ("sqlite", "postgresql"):
        raise ConfigError(f"{key}={dialect}://… is not supported: give {allowed}")
    if dialect == "postgresql":
        if "@" in (parsed.host or ""):  # the driver would say the end of the password in its error
            raise ConfigError(f"{key}={shown(url)} has an @ in its user name or password: write %40 for it")
        return _with_driver(url)
    file = sqlite_file(url)
    if file is None:
        raise ConfigError(f"{key}={url} does not name a file: give {allowed}")
    _, mark, query = url.partition("?")
    return f"{sqlite_uri(file)}{mark}{query}"


def _with_driver(url: str) -> str:
    """A PostgreSQL address with the driver that is installed, if it names none: SQLAlchemy would take psycopg."""
    scheme, separator, rest = url.partition("://")
    if scheme.lower() != "postgresql":
        return url
    present = [name for name in DRIVERS if importlib.util.find_spec(name) is not None]
    return f"postgresql+{(present or list(DRIVERS))[0]}{separator}{rest}"


def sqlite_file(url: str) -> Path | None:
    """The file in the address of a SQLite database; None for another address, and for a database in memory."""
    scheme, separator, name = url.partition("?")[0].partition(":///")
    if not separator or scheme.lower().partition("+")[0] != "sqlite":
        return None
    return None if not name or name.startswith((":", "file:")) else local_path(name)


def local_path(text: str) -> Path:
    """The path that stands in an address, percent-encoded or not.

    If both readings are possible, the one that exists is meant.
    """
    literal, decoded = Path(text), Path(unquote(text))
    if "\N{REPLACEMENT CHARACTER}" in decoded.name or literal == decoded:
        return literal
    for path in (literal, decoded):
        if path.expanduser().exists():
            return path
    # MLflow makes the folder of an encoded name beside the right one.
    return literal if literal.expanduser().parent.is_dir() and not decoded.expanduser().parent.is_dir() else decoded


def network_database(url: str) -> str | None:
    """The kind of the network file system that a SQLite database is on; None for a local disk or another database."""
    file = sqlite_file(url)
    return None if file is None else network_file_system(file.expanduser().absolute())


def sqlite_uri(file: Path) -> str:
    """The address of a SQLite file."""
    return "sqlite:///" + str(file).replace("%", "%25")


def absolute(url: str) -> str:
    """The same database by an address that does not depend on the working folder."""
    file = sqlite_file(url)
    return url if file is None else sqlite_uri(file.expanduser().absolute())


def shown(url: str) -> str:
    """The address of a database or a server as it may appear on a screen: without passwords."""
    if "@" in url and "://" not in url:
        return "***"  # not an address, so that a password may stand anywhere in it
    hidden = re.sub(
        r"(://(?!\[[\da-fA-F:.]+\])[^:/]*):[^@]*@(?:[^/?#@]*@)*", r"\1:***@", url
    )  # what SQLAlchemy takes for the password
    return re.sub(r"([?&]([^&=]*)=)[^&]*", lambda found: f"{found[1]}***" if _is_secret(found[2]) else found[0], hidden)


def has_password(url: str) -> bool:
    """Whether the address of a database or a server has a password in it."""
    import sqlalchemy
    from sqlalchemy import exc

    try:
        if url.startswith("http"):  # SQLAlchemy would look for a user in a path with an @
            return urlsplit(url).password is not None or any(
                _is_secret(key) for key, _ in parse_qsl(urlsplit(url).query)
            )
        parsed = sqlalchemy.make_url(url)
    except (exc.ArgumentError, ValueError):
        return shown(url) != url
    return parsed.password is not None or any(map(_is_secret, parsed.query))


def _is_secret(key: str) -> bool:
    return unquote_plus(key).lower().endswith("password")


def connect_args(url: str, seconds: float) -> dict[str, Any]:
    """What a driver is told, so that it waits no longer than this for a lock of SQLite or PostgreSQL's first answer."""
    import sqlalchemy

    if url.startswith("sqlite"):
        return {"timeout": seconds}
    return {"connect_timeout": int(seconds)} if sqlalchemy.make_url(url).get_driver_name() in DRIVERS else {}


def open_engine(url: str, key: str, seconds: float, **options: Any) -> Engine:
    """SQLAlchemy's engine of a database at a checked address, which the setting `key` has.

    It waits so many seconds for a lock of SQLite, or for PostgreSQL's first answer.

    Raises:
        ConfigError: Its driver is unknown or is not installed.
    """
    import sqlalchemy
    from sqlalchemy import exc

    try:
        return sqlalchemy.create_engine(url, connect_args=connect_args(url, seconds), **options)
    except ImportError as error:
        package = DRIVERS.get(error.name or "", error.name)
        raise ConfigError(
            f"{key}={shown(url)} needs a database driver that is not installed: pip install {package}"
        ) from error
    except (exc.ArgumentError, exc.NoSuchModuleError) as error:
        raise ConfigError(f"{key}={shown(url)} cannot be used: {describe(error)}") from error


def is_driver_error(error: BaseException) -> bool:
    """Whether an exception comes from SQLite or a driver itself: `describe` says it best."""
    return type(error).__module__.partition(".")[0] in ("sqlite3", *DRIVERS)


def describe(error: BaseException) -> str:
    """What a database says, as one line, without SQLAlchemy's additions: the statement, a link."""
    original = getattr(error, "orig", None)
    if original is None and not is_driver_error(error):
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    text = " ".join(str(original or error).split())
    return EXPLAINED.get(text, text or type(error).__name__)


def erase_deleted(file: Path, seconds: float) -> None:
    """Write a SQLite file anew, because what was deleted from it stays in its free pages and its write-ahead log.

    Does nothing if there is no such file. Waits so many seconds for others who use it.

    Raises:
        OutputError: It is in use for longer, damaged, or the disk is full.
    """
    import sqlite3

    if not file.is_file():
        return
    try:
        with closing(sqlite3.connect(file, timeout=seconds, isolation_level=None)) as database:
            database.execute("VACUUM")
            is_busy, *_ = database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    except sqlite3.Error as error:
        raise OutputError(f"deleted rows cannot be erased from {file}: {describe(error)}") from error
    if is_busy:
        raise OutputError(f"deleted rows cannot be erased from {file}: another program reads it")


@contextmanager
def database_lock(engine: Engine, number: int, name: str = "", *, wait: bool = True) -> Iterator[Connection | None]:
    """Hold a lock that all users of a database respect, on whatever machine; the death of its holder frees it.

    Args:
        engine: Of the database.
        number: Of PostgreSQL's advisory lock, 64 bits.
        name: Of the lock file beside a SQLite database, after the database's name.
        wait: For as long as another holds it; otherwise that is a `TimeoutError`.

    Yields:
        The connection that holds the lock; None for SQLite.
    """
    from sqlalchemy import exc

    if engine.dialect.name == "sqlite":
        with _lock_file(engine, name, wait=wait):
            yield None
        return
    take = "pg_advisory_lock" if wait else "pg_try_advisory_lock"
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if connection.exec_driver_sql(f"SELECT {take}({number})").scalar() is False:
            raise TimeoutError
        try:
            yield connection
        finally:
            with suppress(exc.SQLAlchemyError):  # a connection that broke has freed it
                connection.exec_driver_sql(f"SELECT pg_advisory_unlock({number})")


@contextmanager
def locked_transaction(engine: Engine, number: int, name: str = "") -> Iterator[Connection]:
    """Hold the lock of `database_lock` for one transaction.

    What it writes is there at once when the block ends, with an error as well; and nothing of it if the process dies.

    Yields:
        The connection of the transaction.
    """
    from sqlalchemy import exc

    is_sqlite = engine.dialect.name == "sqlite"
    lock = _lock_file(engine, name, wait=True) if is_sqlite else nullcontext()
    # A stricter isolation would show the database as it was before the lock was free.
    options: dict[str, Any] = {} if is_sqlite else {"isolation_level": "READ COMMITTED"}
    with lock, engine.connect().execution_options(**options) as connection:
        # A transaction of SQLite that begins with reading fails if another program has written meanwhile.
        connection.exec_driver_sql("BEGIN IMMEDIATE" if is_sqlite else f"SELECT pg_advisory_xact_lock({number})")
        try:
            yield connection
        except BaseException:
            with suppress(exc.SQLAlchemyError):
                connection.commit()
            raise
        connection.commit()


def _lock_file(engine: Engine, name: str, *, wait: bool) -> AbstractContextManager[None]:
    file = Path(str(engine.url.database))
    return locked(file.with_name(f"{file.name}{name}"), wait=wait)
