"""Databases as tracking stores: made quickly and by one process only, and checked before MLflow touches them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from lorahydra.errors import NotRecordedError, OutputError, TrackingError
from lorahydra.tracking.address import KEY
from lorahydra.tracking.compat import make_tables, migrations
from lorahydra.tracking.faults import describe, store_fault
from lorahydra.utils.databases import open_engine, shown, sqlite_file, sqlite_uri
from lorahydra.utils.files import atomic_file, locked

__all__ = ["is_made", "prepare_database"]

TABLES = 0x6D6C666C
"""Number of the lock under which tables are made."""
SECONDS_TO_ANSWER = 10
"""Longest wait for a database's first answer."""


def prepare_database(uri: str, artifact_root: Path | None, *, writes: bool = False) -> None:
    """Make a SQLite file or tables that do not exist yet, and check that MLflow can work with the database.

    Args:
        uri: Resolved address.
        artifact_root: Where artifacts go by default, recorded in a new database; None makes nothing new.
        writes: Refuse a database that can only be read.
    """
    file = sqlite_file(uri)
    if file is not None and not is_made(file):
        if artifact_root is None:
            raise NotRecordedError(f"the MLflow store {uri} does not exist: there is no file {file}")
        _create_sqlite(file, artifact_root)
    if not _check_database(uri, writes):
        if artifact_root is None:
            raise NotRecordedError(f"the database {shown(uri)} is empty: MLflow has recorded nothing there")
        _create_tables(uri, artifact_root)


def is_made(file: Path) -> bool:
    """Whether a SQLite file holds anything yet."""
    try:
        return file.stat().st_size > 0
    except OSError:
        return False


def _create_sqlite(file: Path, artifact_root: Path) -> None:
    """Make an MLflow database: complete or not at all, and once if several processes try.

    MLflow runs about seventy migrations with a disk sync each. They run in memory and the result is copied, which takes
    1 s instead of 6 s on a busy disk.
    """
    import sqlite3

    try:
        with locked(file):
            if is_made(file):
                return
            # Both kinds of memory are seen by all connections of this process; `memdb` is the newer one. Its name
            # must begin with a slash, which is encoded because MLflow would make a folder for a plain one.
            kind = "vfs=memdb" if sqlite3.sqlite_version_info >= (3, 36) else "mode=memory&cache=shared"
            memory = f"file:%2Florahydra-{uuid.uuid4().hex}?{kind}"
            store = make_tables(f"sqlite:///{memory}&uri=true", artifact_root)
            try:
                with (
                    atomic_file(file) as temporary,
                    closing(sqlite3.connect(memory, uri=True)) as source,
                    closing(sqlite3.connect(temporary)) as target,
                ):
                    source.backup(target)
            finally:
                store.engine.dispose()
    except (OutputError, sqlite3.Error) as error:
        raise TrackingError(f"the MLflow store sqlite:///{file} cannot be made: {describe(error)}") from error
    # MLflow keeps connections per address; one that was opened before would go on with a deleted file.
    make_tables(sqlite_uri(file), artifact_root).engine.dispose()


def _create_tables(uri: str, artifact_root: Path) -> None:
    """Make MLflow's tables in an empty database on a server, once if several processes try.

    MLflow does not lock the database: all processes but one would fail.
    """
    with _connected(uri) as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({TABLES})")
        if not _tables(connection):
            make_tables(uri, artifact_root).engine.dispose()


def _check_database(uri: str, writes: bool) -> bool:
    """Whether the database has tables; refuse one that cannot be used, is not MLflow's, or is of another version.

    MLflow itself would migrate an old database in place, without a copy, when tables are missing.
    """
    with _connected(uri) as connection:
        if connection.dialect.name == "sqlite":
            # This waits for another program's lock; a read-only file is opened for reading all the same.
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        elif connection.dialect.name == "postgresql":
            # While another process makes the tables, they look like those of an older version.
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock_shared({TABLES})")
        tables = _tables(connection)
        versions = "SELECT version_num FROM alembic_version"
        revision = connection.exec_driver_sql(versions).scalar() if "alembic_version" in tables else None
        if tables:
            _check_schema(uri, tables, revision)
        if writes:
            _check_writing(uri, connection, tables)
    return bool(tables)


@contextmanager
def _connected(uri: str) -> Iterator[Any]:
    """A new connection to the database; what is not committed is undone. A fault in the block is a `TrackingError`."""
    import sqlalchemy
    from sqlalchemy import exc

    engine = open_engine(uri, KEY, SECONDS_TO_ANSWER, poolclass=sqlalchemy.pool.NullPool)
    try:
        with engine.connect() as connection:
            yield connection
            connection.rollback()
    except exc.SQLAlchemyError as error:
        raise store_fault(f"the MLflow store {shown(uri)} cannot be used", error) from error
    finally:
        engine.dispose()


def _tables(connection: Any) -> set[str]:
    import sqlalchemy

    return set(sqlalchemy.inspect(connection).get_table_names())


def _check_writing(uri: str, connection: Any, tables: set[str]) -> None:
    """Try a change that is rolled back; for a SQLite file it also needs a journal in the file's folder."""
    if connection.dialect.name == "sqlite":
        version = connection.exec_driver_sql("PRAGMA user_version").scalar()
        connection.exec_driver_sql(f"PRAGMA user_version = {version}")
    elif connection.dialect.name == "postgresql":
        if connection.exec_driver_sql("SHOW transaction_read_only").scalar() == "on":
            raise TrackingError(f"the database {shown(uri)} is read-only: give the address of its primary")
        may = "SELECT has_table_privilege('runs', 'INSERT')"
        if "runs" in tables and not connection.exec_driver_sql(may).scalar():
            raise TrackingError(
                f"the database {shown(uri)} cannot be written by this user: grant it INSERT on the tables"
            )


def _check_schema(uri: str, tables: set[str], revision: str | None) -> None:
    import mlflow

    if "experiments" not in tables:
        raise TrackingError(
            f"the database {shown(uri)} holds tables that are not MLflow's: give MLflow a separate database "
            "(tracking.uri)"
        )
    versions = migrations()
    if revision == versions.get_current_head():
        return
    if revision is None or any(script.revision == revision for script in versions.walk_revisions()):
        raise TrackingError(
            f"the database {shown(uri)} was made by an older MLflow: take a copy of it, then run "
            f"`mlflow db upgrade {shown(uri)}`"
        )
    raise TrackingError(
        f"the database {shown(uri)} was made by a newer MLflow than {mlflow.__version__}: upgrade with "
        "`pip install -U mlflow`"
    )
