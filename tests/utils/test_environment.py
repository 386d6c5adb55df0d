"""What a run depends on beside its config."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lorahydra.utils.environment import code_changes, differences, environment


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Git repository with the script that was started."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "script.py").write_text("print(1)\n")
    (tmp_path / "secret.env").write_text("KEY=1\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "a")
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "sub" / "script.py")])
    return tmp_path


def git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@example.com", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_and_no_changes(repository: Path) -> None:
    described = environment("cpu")
    assert described["code"] == {"commit": git(repository, "rev-parse", "HEAD"), "changes": None}
    assert described["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"torch", "transformers", "peft", "mlflow"} <= set(described["packages"])
    assert described["hardware"]["device"] == "cpu"
    assert described["hardware"]["threads"] >= 1


def test_changes_of_code_are_kept_and_of_nothing_else(repository: Path) -> None:
    (repository / "sub" / "script.py").write_text("print(2)\n")
    (repository / "secret.env").write_text("KEY=hunter2\n")
    (repository / "new.py").write_text("")
    changes = code_changes()
    assert changes is not None
    assert "-print(1)\n+print(2)" in changes
    assert "new file: new.py" in changes, "also outside of the script's own folder"
    assert "hunter2" not in changes


def test_a_folder_that_is_no_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "script.py")])
    assert environment("cpu")["code"] == {"commit": None, "changes": None}


def test_differences_are_named_one_by_one() -> None:
    before = {"python": "3.11.1", "packages": {"torch": "2.12", "peft": "1", "gone": "1"}, "hardware": {"cores": 8}}
    now = {"python": "3.11.2", "packages": {"torch": "2.13", "peft": "1", "new": "2"}, "hardware": {"cores": 8}}
    assert differences(before, now) == [
        "python: 3.11.1 → 3.11.2",
        "packages: new: not there → 2",
        "packages: torch: 2.12 → 2.13",
        "packages: gone: 1 → not there",
    ]
    assert differences({}, now) == [], "nothing on record, nothing to compare"
