"""Projects, datasets and jobs in a database: SQLite in the service's folder, or PostgreSQL by URL."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import sqlalchemy
from sqlalchemy import JSON, BigInteger, ForeignKey, String, Text, event, exc
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from lorahydra.errors import ConfigError, OutputError
from lorahydra.utils.databases import checked_url, database_lock, describe, open_engine

__all__ = ["Database", "Dataset", "Deletion", "Job", "KeptRuns", "LastId", "Project"]

VERSION = 1
"""Version of the tables below; a database of another version is refused."""
SECONDS_TO_WAIT = 30
"""How long SQLite waits for another thread's write, and PostgreSQL's first answer may take."""
SERVER_LOCK = 0x6C6F7262
"""Number of the lock that the one server of a database holds."""
KEY = "--storage"
ALLOWED = "sqlite:///service.db or postgresql://USER@HOST/NAME"


class Table(DeclarativeBase):
    """Root of the tables. Times are seconds since the epoch."""


class Version(Table):
    """One row."""

    __tablename__ = "lorahydra_service"
    version: Mapped[int] = mapped_column(primary_key=True)
    word: Mapped[str | None] = mapped_column(String(16))
    """Random; stands in the names of studies that are kept where other servers keep theirs."""


class Project(Table):
    """A project."""

    __tablename__ = "projects"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(String(200))
    created: Mapped[float] = mapped_column(default=time.time)


class Dataset(Table):
    """A dataset; its file is `datasets/FILE` in the service's folder."""

    __tablename__ = "datasets"
    id: Mapped[int] = mapped_column(primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id"), index=True)
    name: Mapped[str] = mapped_column(String(200))
    file: Mapped[str] = mapped_column(String(80))
    size: Mapped[int] = mapped_column(BigInteger)
    rows: Mapped[int]
    format: Mapped[str] = mapped_column(String(40))
    report: Mapped[dict[str, Any]] = mapped_column(JSON)
    created: Mapped[float] = mapped_column(default=time.time)


class Job(Table):
    """A fine-tune; its folder is `jobs/ID` in the service's folder."""

    __tablename__ = "jobs"
    id: Mapped[int] = mapped_column(primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id"), index=True)
    dataset_id: Mapped[int | None] = mapped_column(ForeignKey("datasets.id"))
    name: Mapped[str] = mapped_column(String(200))
    notes: Mapped[str | None] = mapped_column(Text)
    params: Mapped[dict[str, Any]] = mapped_column(JSON)
    overrides: Mapped[list[str]] = mapped_column(JSON)
    """Hydra overrides of the study, without its name and its stores."""
    environment: Mapped[dict[str, str]] = mapped_column(JSON)
    """`LORA_*` variables at the time when it was created: they belong to the study."""
    idempotency_key: Mapped[str | None] = mapped_column(String(255), unique=True)
    request_digest: Mapped[str | None] = mapped_column(String(64))

    state: Mapped[str] = mapped_column(String(20), index=True)
    queue: Mapped[int] = mapped_column(default=0)
    """Position in the order of starts."""
    attempt: Mapped[int] = mapped_column(default=0)
    """How often its process was started."""
    crashes: Mapped[int] = mapped_column(default=0)
    created: Mapped[float] = mapped_column(default=time.time)
    started: Mapped[float | None]
    attempt_started: Mapped[float | None]
    """None while no process runs."""
    seconds_before: Mapped[float] = mapped_column(default=0.0)
    """Running time of the attempts that have ended."""
    ended: Mapped[float | None]
    failure: Mapped[str | None] = mapped_column(Text)

    finished: Mapped[int] = mapped_column(default=0)
    trial_seconds: Mapped[float | None]
    """Mean of its finished trials."""
    stage: Mapped[str | None] = mapped_column(String(20))
    stage_started: Mapped[float | None]
    """What the study does after its last trial, and since when."""
    validation_baseline: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    current: Mapped[int | None]
    current_started: Mapped[float | None]
    best_score: Mapped[float | None]
    best_trial: Mapped[int | None]
    best_params: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    baseline_score: Mapped[float | None]
    test_score: Mapped[float | None]
    outcome: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """What the study said at its end; None before, and if an earlier version ran it."""
    study: Mapped[str | None] = mapped_column(String(80))
    """Name of its study; None if an earlier version created it, which only knew `fine-tune-ID`."""
    study_run: Mapped[str | None] = mapped_column(String(32))


class Deletion(Table):
    """What was asked to be deleted. The rows of it are gone from the other tables; all else goes by and by."""

    __tablename__ = "deletions"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(20))
    number: Mapped[int]
    """Id of the project, dataset or fine-tune."""
    project_id: Mapped[int]
    parts: Mapped[dict[str, list[Any]]] = mapped_column(JSON)
    """What has to go; empty when it is gone."""
    size: Mapped[int] = mapped_column(BigInteger)
    """Bytes that were expected to become free."""
    requested: Mapped[float] = mapped_column(default=time.time)
    ended: Mapped[float | None] = mapped_column(index=True)
    fault: Mapped[str | None] = mapped_column(Text)
    """Why it could not go on when that was last tried."""


class KeptRuns(Table):
    """A fine-tune that was deleted without its runs in MLflow, which go with its dataset or its project."""

    __tablename__ = "kept_runs"
    job_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    project_id: Mapped[int] = mapped_column(index=True)
    dataset_id: Mapped[int | None]
    study: Mapped[str | None] = mapped_column(String(80))
    """As that of the fine-tune."""


class LastId(Table):
    """The highest id of a table's rows that were deleted: an id is never given twice."""

    __tablename__ = "last_ids"
    table: Mapped[str] = mapped_column(String(20), primary_key=True)
    number: Mapped[int]


class Database:
    """The tables behind a URL, which only this server uses.

    Args:
        url: For example `sqlite:////srv/lorahydra/service.db` or `postgresql://user@host/service`.

    Raises:
        ConfigError: The URL cannot be used, another server uses the database, or its tables are of another version.
        OutputError: The database cannot be reached or written.
    """

    def __init__(self, url: str) -> None:
        self._engine = _engine(url)
        self._name = self._engine.url.render_as_string(hide_password=True)
        self._writing = threading.Lock()
        self.word = ""
        """What makes names of this server's studies its own."""
        self.version = 0
        """Another number after each change, all of which are made by this server."""
        self._held = ExitStack()
        self._claim: sqlalchemy.Connection | None = None
        try:
            with self._talking():
                self._claim = self._held.enter_context(database_lock(self._engine, SERVER_LOCK, ".server", wait=False))
                Table.metadata.create_all(self._engine)
                self._add_columns()
            self._check_version()
        except TimeoutError:
            self.close()
            raise ConfigError(f"another lorahydra server uses {self._name}: stop it first") from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let others use the database."""
        self._held.close()
        self._engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A transaction that changes nothing.

        Raises:
            OutputError: The database failed.
        """
        with self._talking(), Session(self._engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def changing(self) -> Iterator[Session]:
        """A transaction that is committed when the block ends without an error; there is one at a time.

        Raises:
            OutputError: The database failed.
        """
        with self._writing:
            with self.reading() as session:
                yield session
            self.version += 1  # after the commit: what was read under an older number may be outdated

    def still_mine(self) -> bool:
        """Whether no other server can have taken the database: a PostgreSQL server may have dropped the connection."""
        if self._claim is None:
            return True
        try:
            self._claim.exec_driver_sql("SELECT 1")
        except exc.SQLAlchemyError:
            return False
        return True

    def erase_deleted(self) -> None:
        """Leave nothing of deleted rows in the database's file; PostgreSQL only gets to know that it may reuse them.

        Raises:
            OutputError: The database failed.
        """
        with self._writing, self._talking(), self._engine.connect() as connection:
            automatic = connection.execution_options(isolation_level="AUTOCOMMIT")
            automatic.exec_driver_sql("VACUUM")
            if self._engine.dialect.name == "sqlite":
                is_busy, *_ = automatic.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").one()
                if is_busy:
                    raise OutputError(f"deleted rows cannot be erased from {self._name} while others read it")

    def _check_version(self) -> None:
        with self.changing() as session:
            row = session.scalar(sqlalchemy.select(Version))
            if row is None:
                session.add(row := Version(version=VERSION))
            elif row.version != VERSION:
                raise ConfigError(
                    f"{self._name} belongs to another version of lorahydra serve (tables {row.version}, this one has "
                    f"{VERSION}): use that version, or another --storage"
                )
            row.word = self.word = row.word or secrets.token_hex(3)

    def _add_columns(self) -> None:
        """Add the columns that an earlier version had not yet; all of them may be empty, so both versions can go on."""
        with self._engine.begin() as connection:
            for table in Table.metadata.sorted_tables:
                there = {column["name"] for column in sqlalchemy.inspect(connection).get_columns(table.name)}
                for column in [column for column in table.columns if column.name not in there]:
                    kind = column.type.compile(self._engine.dialect)
                    connection.execute(sqlalchemy.text(f"ALTER TABLE {table.name} ADD COLUMN {column.name} {kind}"))

    @contextmanager
    def _talking(self) -> Iterator[None]:
        try:
            yield
        except exc.IntegrityError:
            raise
        except exc.SQLAlchemyError as error:
            raise OutputError(f"the service's database {self._name} cannot be used: {describe(error)}") from error


def _engine(url: str) -> sqlalchemy.Engine:
    url = checked_url(url, KEY, ALLOWED)
    engine = open_engine(url, KEY, SECONDS_TO_WAIT, pool_pre_ping=True, pool_size=20)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _: object) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", f"busy_timeout={SECONDS_TO_WAIT * 1000}", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
