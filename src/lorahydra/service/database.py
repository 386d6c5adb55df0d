"""Projects, datasets and jobs in a database: SQLite in the service's folder, or PostgreSQL by URL."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import JSON, BigInteger, ForeignKey, String, Text, event, exc
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from lorahydra.errors import ConfigError, OutputError
from lorahydra.tracking.address import sqlite_file, sqlite_uri, with_driver
from lorahydra.utils.files import writing

__all__ = ["Database", "Dataset", "Job", "Project"]

VERSION = 1
"""Of the tables below; a database of another version is refused."""
SECONDS_TO_WAIT = 30
"""How long SQLite waits for another thread's write."""
SERVER_LOCK = 0x6C6F7262
"""Number of PostgreSQL's advisory lock that the one server of a database holds."""


class Table(DeclarativeBase):
    """Root of the tables. Times are seconds since the epoch."""


class Version(Table):
    """One row."""

    __tablename__ = "lorahydra_service"
    version: Mapped[int] = mapped_column(primary_key=True)


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
    params: Mapped[dict[str, Any]] = mapped_column(JSON)
    overrides: Mapped[list[str]] = mapped_column(JSON)
    """What the study is run with, apart from its name and its stores."""
    environment: Mapped[dict[str, str]] = mapped_column(JSON)
    """`LORA_*` variables when it was made: they belong to the study."""
    idempotency_key: Mapped[str | None] = mapped_column(String(255), unique=True)
    request_digest: Mapped[str | None] = mapped_column(String(64))

    state: Mapped[str] = mapped_column(String(20), index=True)
    queue: Mapped[int] = mapped_column(default=0)
    """Place in the order of starts."""
    attempt: Mapped[int] = mapped_column(default=0)
    """How often its process was started."""
    crashes: Mapped[int] = mapped_column(default=0)
    created: Mapped[float] = mapped_column(default=time.time)
    started: Mapped[float | None]
    attempt_started: Mapped[float | None]
    """None while no process runs."""
    seconds_before: Mapped[float] = mapped_column(default=0.0)
    """Time of the attempts that have ended."""
    ended: Mapped[float | None]
    failure: Mapped[str | None] = mapped_column(Text)

    finished: Mapped[int] = mapped_column(default=0)
    trial_seconds: Mapped[float | None]
    """Mean of its finished trials."""
    current: Mapped[int | None]
    current_started: Mapped[float | None]
    best_score: Mapped[float | None]
    best_trial: Mapped[int | None]
    best_params: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    baseline_score: Mapped[float | None]
    test_score: Mapped[float | None]
    study_run: Mapped[str | None] = mapped_column(String(32))


class Database:
    """The tables behind a URL, which this server has to itself.

    Args:
        url: For example `sqlite:////srv/lorahydra/service.db` or `postgresql://user@host/service`.

    Raises:
        ConfigError: The URL cannot be used, another server uses the database, or its tables are of another version.
        OutputError: The database cannot be reached or written.
    """

    def __init__(self, url: str) -> None:
        self._engine = _engine(url)
        self._name = self._engine.url.render_as_string(hide_password=True)
        self._versions = itertools.count(1)
        self.version = 0
        """Another number after each change; only this server makes changes."""
        self._claim: sqlalchemy.Connection | None = None
        self._file_lock: Any = None
        try:
            self._take()
            with self._talking():
                Table.metadata.create_all(self._engine)
            self._check_version()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give it back."""
        if self._claim is not None:
            self._claim.close()
        if self._file_lock is not None:
            self._file_lock.release()
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
        """A transaction, committed when the block ends well.

        Raises:
            OutputError: The database failed.
        """
        with self.reading() as session:
            yield session
        # After the commit, and never the same twice: what was read under an older number may be outdated.
        self.version = next(self._versions)

    def still_mine(self) -> bool:
        """Whether no other server can have taken the database: a PostgreSQL server may have dropped the connection."""
        if self._claim is None:
            return True
        try:
            self._claim.execute(sqlalchemy.text("SELECT 1"))
        except exc.SQLAlchemyError:
            return False
        return True

    def _take(self) -> None:
        busy = ConfigError(f"another lorahydra server uses {self._name}: stop it first")
        if self._engine.dialect.name == "sqlite":
            from filelock import FileLock, Timeout

            file = Path(str(self._engine.url.database))
            with writing(file):
                file.parent.mkdir(parents=True, exist_ok=True)
                lock = FileLock(file.with_name(f".{file.name}.server.lock"))
                try:
                    lock.acquire(timeout=0)
                except Timeout:
                    raise busy from None
            self._file_lock = lock
            return
        with self._talking():
            claim = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            taken = claim.execute(sqlalchemy.text(f"SELECT pg_try_advisory_lock({SERVER_LOCK})")).scalar()
        self._claim = claim
        if not taken:
            raise busy

    def _check_version(self) -> None:
        with self.changing() as session:
            known = session.scalars(sqlalchemy.select(Version.version)).all()
            if not known:
                session.add(Version(version=VERSION))
            elif known != [VERSION]:
                raise ConfigError(
                    f"{self._name} belongs to another version of lorahydra serve (tables {known[0]}, this one has "
                    f"{VERSION}): use that version, or another --storage"
                )

    @contextmanager
    def _talking(self) -> Iterator[None]:
        try:
            yield
        except exc.IntegrityError:
            raise
        except exc.SQLAlchemyError as error:
            found = str(getattr(error, "orig", None) or error).strip().splitlines()
            message = found[0] if found else type(error).__name__
            raise OutputError(f"the service's database {self._name} cannot be used: {message}") from error


def _engine(url: str) -> sqlalchemy.Engine:
    example = "give sqlite:///service.db or postgresql://USER@HOST/NAME"
    try:
        file = sqlite_file(url)
        address = sqlalchemy.make_url(with_driver(url) if file is None else sqlite_uri(file))
    except (exc.ArgumentError, ValueError) as error:
        raise ConfigError(f"--storage is not the URL of a database: {example}") from error
    dialect = address.get_backend_name()
    if dialect not in ("sqlite", "postgresql"):
        raise ConfigError(f"--storage {dialect}://… is not possible: {example}")
    if dialect == "sqlite" and (not address.database or address.database.startswith((":", "file:"))):
        raise ConfigError(f"--storage names no file: {example}")
    options = {"timeout": SECONDS_TO_WAIT} if dialect == "sqlite" else {}
    try:
        engine = sqlalchemy.create_engine(address, connect_args=options, pool_pre_ping=True, pool_size=20)
    except ImportError as error:
        raise ConfigError("--storage needs a driver: pip install 'lorahydra[postgresql]'") from error
    if dialect == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _: object) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", f"busy_timeout={SECONDS_TO_WAIT * 1000}", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
