"""Debian's PostgreSQL for tests: one server per process of pytest, a database of its own for each test."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.waiting import holds

_numbers = itertools.count(1)


def program(name: str) -> str | None:
    """Path of a PostgreSQL program; Debian keeps those of the server out of PATH."""
    newest_first = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: _version(folder), reverse=True)
    return shutil.which(name) or next(filter(None, (shutil.which(name, path=str(one)) for one in newest_first)), None)


def _version(folder: Path) -> float:
    try:
        return float(folder.parent.name)
    except ValueError:
        return 0.0


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """URL of the `postgres` database of a new server that listens on a socket only."""
    initdb, postgres = program("initdb"), program("postgres")
    if initdb is None or postgres is None:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    pytest.importorskip("psycopg2", reason="the extra postgresql is not installed")
    import sqlalchemy

    # The path of a socket may have 107 characters: pytest's folders are too deep.
    with tempfile.TemporaryDirectory(prefix="pg", dir="/tmp") as name:
        folder = Path(name)
        user: dict[str, Any] = {}
        if os.getuid() == 0:  # PostgreSQL refuses to be started by root
            shutil.chown(folder, "nobody")
            user = {"user": "nobody"}
        options = ["--auth=trust", "--username=lora", "--no-sync", "--encoding=UTF8", "--locale=C"]
        subprocess.run([initdb, "-D", folder / "data", *options], check=True, capture_output=True, cwd=folder, **user)
        quiet = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={folder}", "-c", "fsync=off"]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(
                [postgres, "-D", folder / "data", *quiet], stdout=log, stderr=log, cwd=folder, **user
            )
        url = f"postgresql+psycopg2://lora@/postgres?host={folder}"
        engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.pool.NullPool)
        try:
            assert holds(lambda: _answers(engine)), (folder / "log").read_text()
            yield url
        finally:
            engine.dispose()
            server.send_signal(signal.SIGINT)
            server.wait()


@pytest.fixture
def postgresql(postgresql_server: str) -> str:
    """URL of a new, empty database."""
    return new_database(postgresql_server)


def new_database(server: str) -> str:
    """Make an empty database beside others.

    Args:
        server: URL of `postgresql_server`.

    Returns:
        URL of the new one.
    """
    name = f"test{next(_numbers)}"
    execute(server, f"CREATE DATABASE {name}")
    return server.replace("@/postgres?", f"@/{name}?")


def execute(url: str, *statements: str) -> None:
    """Run statements, each on its own."""
    import sqlalchemy

    engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.pool.NullPool)
    with engine.connect() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def _answers(engine: Any) -> bool:
    from sqlalchemy.exc import OperationalError

    try:
        engine.connect().close()
    except OperationalError:
        return False
    return True
