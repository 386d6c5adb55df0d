"""A study's database and its lock."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import optuna
import pytest
from optuna.storages import InMemoryStorage, RDBStorage
from tests.support.waiting import SECONDS

from lorahydra.config.schema import TrackingConfig
from lorahydra.errors import ConfigError, OutputError, StudyError
from lorahydra.sweep.deleting import delete_studies
from lorahydra.sweep.storage import HEARTBEAT_SECONDS, address_of, open_storage, shown, study_lock
from lorahydra.tracking import check_store
from lorahydra.utils.databases import absolute


@pytest.mark.parametrize(
    "url", ["studies.db", "", "sqlite://", "sqlite:///:memory:", "sqlite:///file:x?mode=memory", "oracle://x/y", "a b"]
)
def test_an_address_that_cannot_be_used(url: str) -> None:
    with pytest.raises(ConfigError, match="hydra.sweeper.storage") as raised:
        open_storage(url)
    assert "\n" not in str(raised.value)


def test_a_password_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(None) == "in memory"
    pytest.importorskip("psycopg2")
    with pytest.raises(StudyError) as raised:
        open_storage("postgresql+psycopg2://me:hunter2@/db?host=/nowhere")
    assert "hunter2" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_memory() -> None:
    assert isinstance(open_storage(None), InMemoryStorage)


def test_the_folder_is_made(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/a/b/studies.db")
    assert isinstance(storage, RDBStorage)
    assert storage.get_heartbeat_interval() == HEARTBEAT_SECONDS
    assert (tmp_path / "a/b/studies.db").is_file()
    storage.engine.dispose()


def test_a_store_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="there is no study store .*studies.db"):
        open_storage(f"sqlite:///{tmp_path}/studies.db", create=False)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        open_storage(f"sqlite:///{tmp_path}/file/studies.db")


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "studies.db").write_text("something else entirely, and long enough to be read as one" * 99)
    with pytest.raises(StudyError, match=r"studies.db cannot be used: the file is not a SQLite database"):
        open_storage(f"sqlite:///{tmp_path}/studies.db")


def test_tables_of_another_version(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/studies.db"
    open_storage(url).engine.dispose()  # type: ignore[attr-defined]
    connection = sqlite3.connect(tmp_path / "studies.db")
    connection.execute("UPDATE alembic_version SET version_num = 'v0.9.0.a'")
    connection.commit()
    connection.close()
    with pytest.raises(StudyError, match="studies.db cannot be used: .*") as raised:
        open_storage(url)
    assert "\n" not in str(raised.value)


def test_mlflows_database_is_not_for_studies(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/mlflow.db"
    check_store(TrackingConfig(uri=url))
    with pytest.raises(StudyError, match="mlflow.db is MLflow's database: give studies another one"):
        open_storage(url)


def test_the_lock_of_a_study_keeps_others_out(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/studies.db"
    first, second = open_storage(url), open_storage(url)
    wrapped = optuna.storages.get_storage(first)  # as `create_study` wraps it
    entered = threading.Event()

    def enter() -> None:
        with study_lock(second, "a"):
            entered.set()

    with study_lock(wrapped, "a"):
        other = threading.Thread(target=enter)
        other.start()
        with study_lock(second, "b"):
            assert not entered.is_set()
    other.join(SECONDS)
    assert entered.is_set()
    for storage in (first, second):
        storage.engine.dispose()  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["мои данные", "100%", "a%20b"])
def test_the_folder_may_have_any_name(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    storage = open_storage(f"sqlite:///{folder}/studies.db")
    assert isinstance(storage, RDBStorage)
    storage.engine.dispose()
    assert [file.name for file in folder.iterdir() if file.suffix == ".db"] == ["studies.db"]
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    address = address_of(storage)
    assert address == absolute(address or "") == shown(address)
    encoded = f"sqlite:///{folder.as_uri().removeprefix('file://')}/studies.db"
    again = open_storage(encoded, create=False)
    assert address_of(again) == address
    assert isinstance(again, RDBStorage)
    again.engine.dispose()


def test_nothing_of_a_deleted_study_is_left(tmp_path: Path) -> None:
    file = tmp_path / "studies.db"
    storage = open_storage(f"sqlite:///{file}")
    for name in ("it's 7", "kept"):
        study = optuna.create_study(study_name=name, storage=storage)
        for _ in range(20):
            study.add_trial(optuna.create_trial(value=1.0, user_attrs={"failure": f"planted in {name}"}))
    assert b"planted in it's 7" in file.read_bytes()
    for _ in range(2):
        delete_studies(f"sqlite:///{file}", ["it's 7", "none"])
        content = file.read_bytes()
        assert b"it's 7" not in content
        assert b"planted in kept" in content
    delete_studies(f"sqlite:///{tmp_path / 'none.db'}", ["it's 7"])
    assert not (tmp_path / "none.db").exists()


def test_a_write_waits_longer_than_a_claim_may_last(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/studies.db")
    assert isinstance(storage, RDBStorage)
    with storage.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 600_000
