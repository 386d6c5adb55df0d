"""Addresses of databases, and the lock that their users respect."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy
from tests.postgres import postgresql as postgresql
from tests.postgres import postgresql_server as postgresql_server
from tests.support.waiting import SECONDS

from lorahydra.errors import ConfigError
from lorahydra.utils import databases
from lorahydra.utils.databases import (
    absolute,
    checked_url,
    database_lock,
    describe,
    has_password,
    open_engine,
    shown,
    sqlite_file,
)

ALLOWED = "this or that"


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(ConfigError) as caught:
        call()
    message = str(caught.value)
    assert message.startswith("some.key=")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("studies.db", "some.key=studies.db is not the address of a database: give this or that"),
        ("", "is not the address of a database"),
        ("postgresql://host:port/db", "is not the address of a database"),
        ("mysql://me:hunter2@host/db", "some.key=mysql://… is not supported: give this or that"),
        ("mssql+pyodbc://host/db", "some.key=mssql://… is not supported"),
        (
            "postgresql://me:hunt@er2@host/db",
            "postgresql://me:***@host/db has an @ in its user name or password: write %40",
        ),
        ("sqlite://", "does not name a file: give this or that"),
        ("sqlite:///:memory:", "does not name a file"),
        ("sqlite:///file:x?mode=memory", "does not name a file"),
    ],
)
def test_an_address_that_is_not_supported(url: str, expected: str) -> None:
    assert expected in refusal(lambda: checked_url(url, "some.key", ALLOWED))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://me:hunter2@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:hun/ter2@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:hunt@er2@host/db", "postgresql://me:***@host/db"),
        ("postgresql://host/db?user=me&password=hunter2&a=b", "postgresql://host/db?user=me&password=***&a=b"),
        ("https://me:hunter2@[::1]:5000/x@y", "https://me:***@[::1]:5000/x@y"),
        ("postgresql://me@srv:hunter2@host/db", "postgresql://me@srv:***@host/db"),
        ("postgresql://m?e#[x:hunter2@host/db", "postgresql://m?e#[x:***@host/db"),
        ("postgresql://h/db?a=b&%70assword=hunter2#x", "postgresql://h/db?a=b&%70assword=***"),
        ("me:hunter2@host", "***"),
        ("http://[::1]:5000/x@y", "http://[::1]:5000/x@y"),
        ("postgresql://me@host:5432/db", "postgresql://me@host:5432/db"),
        ("sqlite:////a:b/c@d.db", "sqlite:////a:b/c@d.db"),
    ],
)
def test_a_password_is_not_shown(url: str, expected: str) -> None:
    assert shown(url) == expected
    assert has_password(url) == (expected != url)


def test_a_password_of_stars_is_one() -> None:
    assert has_password("postgresql://me:***@host/db")


def test_postgresql_takes_the_driver_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def driver(*installed: str) -> str:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: name if name in installed else None)
        return checked_url("postgresql://me@host/db?a=b", "some.key", ALLOWED)

    assert driver("psycopg2", "psycopg") == "postgresql+psycopg2://me@host/db?a=b"
    assert driver("psycopg") == "postgresql+psycopg://me@host/db?a=b"
    assert driver() == "postgresql+psycopg2://me@host/db?a=b"
    named = "postgresql+psycopg://host/db"
    assert checked_url(named, "some.key", ALLOWED) == named


@pytest.mark.parametrize(
    ("driver", "package"), [("psycopg2", "'lorahydra[postgresql]'"), ("psycopg", "'psycopg[binary]'")]
)
def test_a_driver_that_is_not_installed(driver: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, driver, None)
    message = refusal(lambda: open_engine(f"postgresql+{driver}://me:hunter2@host/db", "some.key", 1))
    assert message.endswith(f"needs a database driver that is not installed: pip install {package}")
    assert "hunter2" not in message


def test_a_driver_that_nobody_knows() -> None:
    assert "foo" in refusal(lambda: open_engine("postgresql+foo://host/db", "some.key", 1))


def test_the_file_is_read_as_people_and_as_mlflow_write_it(tmp_path: Path) -> None:
    folder = tmp_path / "мои данные 100%"
    folder.mkdir()
    file = folder / "a.db"
    encoded = f"sqlite:///{file.as_uri().removeprefix('file://')}"
    assert "%20" in encoded
    for url in (encoded, f"sqlite:///{file}", f"sqlite:///{file}?timeout=5"):
        assert sqlite_file(url) == file
        checked = checked_url(url, "some.key", ALLOWED)
        assert sqlalchemy.make_url(checked).database == str(file)
        assert sqlalchemy.make_url(absolute(checked)).database == str(file)
    # MLflow itself makes the folder of the encoded name, and nothing in it.
    Path(encoded.removeprefix("sqlite:///")).parent.mkdir(parents=True)
    assert sqlite_file(encoded) == file
    assert sqlite_file("postgresql://host/db") is None


def test_a_relative_address_stays_when_the_folder_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert absolute("sqlite:///a/b.db") == f"sqlite:///{tmp_path}/a/b.db"
    assert absolute("sqlite:///~/b.db") == "sqlite:////home/me/b.db"
    assert absolute("postgresql://host/db") == "postgresql://host/db"


def test_what_a_database_says_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_text("something else entirely, and long enough to be read as a database" * 99)
    engine = open_engine(f"sqlite:///{tmp_path}/a.db", "some.key", 1)
    with pytest.raises(sqlalchemy.exc.DatabaseError) as caught, engine.connect() as connection:
        connection.exec_driver_sql("SELECT * FROM sqlite_master")
    assert describe(caught.value) == "the file is not a SQLite database: give another file"
    assert describe(sqlite3.OperationalError("near\n  x")) == "near x"
    assert describe(sqlalchemy.exc.ArgumentError("no\nmore")) == "no"


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=[pytest.mark.service, pytest.mark.slow])])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database of each supported kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/a.db"
    return str(request.getfixturevalue("postgresql"))


def test_the_lock_keeps_others_out(url: str) -> None:
    # Two processes have an engine each.
    first, second = (open_engine(url, "some.key", 5) for _ in range(2))
    entered = threading.Event()

    def enter() -> None:
        with database_lock(second, -5, ".a"):
            entered.set()

    with database_lock(first, -5, ".a"):
        other = threading.Thread(target=enter)
        other.start()
        with database_lock(second, 6, ".b", wait=False):
            assert not entered.is_set()
        with pytest.raises(TimeoutError), database_lock(second, -5, ".a", wait=False):
            pass
        assert not entered.wait(0.1)
    other.join(SECONDS)
    assert entered.is_set()
    for engine in (first, second):
        engine.dispose()


@pytest.mark.service
@pytest.mark.slow
def test_a_lock_whose_connection_broke_is_free_again(postgresql: str) -> None:
    first, second = (open_engine(postgresql, "some.key", 5) for _ in range(2))
    with database_lock(first, 7) as connection, second.connect() as killer:
        assert connection is not None
        number = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()
        killer.exec_driver_sql(f"SELECT pg_terminate_backend({number})")
    with database_lock(second, 7):
        pass
    for engine in (first, second):
        engine.dispose()


def test_sqlite_waits_as_long_as_it_is_told() -> None:
    assert databases.connect_args("sqlite:///a.db", 60) == {"timeout": 60}
    assert databases.connect_args("postgresql+psycopg2://host/db", 60) == {"connect_timeout": 60}
    assert databases.connect_args("postgresql+pg8000://host/db", 60) == {}
