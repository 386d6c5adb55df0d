"""Stores that cannot be used, as the user of each command meets them: one line, and nothing is left half-done."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.support.ports import free_port
from tests.support.programs import TRAIN, ProgramRunner

from lorahydra.config.schema import TrackingConfig
from lorahydra.tracking import check_store

pytestmark = pytest.mark.slow

RUN = "0" * 32


def closed_port(folder: Path) -> str:
    return f"http://127.0.0.1:{free_port()}"


def old_database(folder: Path) -> str:
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        database.executescript((Path(__file__).parent / "mlflow_1_2.sql").read_text("utf-8"))
    return f"sqlite:///{folder / 'mlflow.db'}"


def read_only_database(folder: Path) -> str:
    """On a file system that is read-only for root, too."""
    made = folder.parent / "made.db"
    check_store(TrackingConfig(uri=f"sqlite:///{made}"))
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("may not mount")
    shutil.copy(made, folder / "mlflow.db")
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    return f"sqlite:///{folder / 'mlflow.db'}"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where the store is."""
    made = tmp_path / "store"
    made.mkdir()
    yield made
    if made.is_mount():
        subprocess.run(["umount", "-l", str(made)], check=True)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (closed_port, "cannot be used: nothing listens there (connection refused)"),
        (old_database, "was made by an older MLflow: take a copy of it, then run `mlflow db upgrade "),
        (read_only_database, "cannot be used: it is read-only"),
    ],
)
def test_every_command_says_one_line(
    make: Callable[[Path], str], expected: str, folder: Path, tmp_path: Path, programs: ProgramRunner
) -> None:
    uri = make(folder)
    before = {path: path.read_bytes() for path in folder.iterdir() if path.suffix == ".db"}
    train = [TRAIN, f"tracking.uri='{uri}'"]
    commands = {
        "trial": train,
        "study": [*train, "-m"],
        "reproduce": ["-m", "lorahydra", "reproduce", RUN, "--uri", uri],
    }
    for name, command in commands.items():
        (tmp_path / name).mkdir()
        done = programs.run(command, tmp_path / name)
        [line] = done.stderr.strip().splitlines()
        # Before it runs a trial, this one only reads; that the store has no such run is the user's fault.
        reads = name == "reproduce" and make is read_only_database
        assert done.returncode == (2 if reads else 3)
        assert line.startswith("lorahydra: the ")
        assert (f"has no run {RUN}" if reads else expected) in line
        assert list((tmp_path / name).iterdir()) == []
    assert {path: path.read_bytes() for path in folder.iterdir() if path.suffix == ".db"} == before
