"""Atomic writes leave all or nothing, and the cache is where the user wants it."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from lorahydra.errors import OutputError
from lorahydra.utils.files import atomic_dir, atomic_file, cache_dir, replaced_dir, writing


def test_the_cache_follows_the_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LORAHYDRA_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "lorahydra"
    monkeypatch.setenv("LORAHYDRA_CACHE", str(tmp_path / "mine"))
    assert cache_dir() == tmp_path / "mine"
    monkeypatch.delenv("LORAHYDRA_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "lorahydra"


def test_a_file_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    with atomic_file(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_an_error_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_appears_whole_and_readable(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    before = os.umask(0o022)
    try:
        with atomic_dir(path) as temporary:
            (temporary / "inner").mkdir()
            (temporary / "inner" / "file").touch(mode=0o600)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o755
    assert (path / "inner" / "file").stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [path]


def test_the_first_of_two_folders_stays(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with atomic_dir(path) as temporary:
        (temporary / "second").touch()
        path.mkdir()
        (path / "first").touch()
    assert [entry.name for entry in path.iterdir()] == ["first"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("make", [atomic_dir, replaced_dir])
def test_what_a_killed_process_has_left_is_removed_and_the_folder_of_a_running_one_stays(
    make: Callable[[Path], AbstractContextManager[Path]], tmp_path: Path
) -> None:
    path = tmp_path / "folder"
    code = (
        f"import pathlib, sys; from lorahydra.utils.files import {make.__name__} as make\n"
        "with make(pathlib.Path(sys.argv[1])) as temporary:\n"
        "    (temporary / 'file').touch(); print(temporary, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(path)]
    running = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    begun = [Path(program.stdout.readline().strip()) for program in running if program.stdout]
    running[0].kill()
    running[0].communicate()
    own = tmp_path / ".folder.of-the-user"
    own.mkdir()
    assert begun[0].is_dir()
    with make(path) as temporary:
        pass
    assert (begun[0].exists(), (begun[1] / "file").exists()) == (False, True)
    assert not temporary.exists()
    running[1].communicate("")
    assert running[1].returncode == 0
    assert sorted(tmp_path.iterdir()) == [own, path]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EROFS, "the file system is read-only"),
        (errno.ENAMETOOLONG, "the name is too long"),
        (errno.EIO, "the disk has an input/output error"),
    ],
)
def test_an_error_of_the_disk_is_one_line(code: int, reason: str, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=f"cannot write to {tmp_path}: {reason}"), writing(tmp_path):
        raise OSError(code, os.strerror(code))


def test_a_disk_that_gets_full_while_a_folder_is_copied_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "file").write_text("x")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copystat", lambda *_, **__: None)
    with pytest.raises(OutputError, match="the disk is full"), writing(tmp_path):
        shutil.copytree(tmp_path / "from", tmp_path / "to", copy_function=full)


def test_a_file_in_the_way_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="a part of the path is a file"), atomic_file(tmp_path / "file" / "x" / "y"):
        pass


def test_other_errors_are_no_fault_of_the_disk(tmp_path: Path) -> None:
    with pytest.raises(BrokenPipeError), writing(tmp_path):
        raise BrokenPipeError(errno.EPIPE, "broken pipe")


def test_what_a_library_makes_of_a_full_disk_is_one_line(tmp_path: Path) -> None:
    texts = [("from", "to", f"[Errno {errno.ENOSPC}] No space left on device: 'from' -> 'to'")]
    for cause in (OSError(errno.ENOSPC, "full"), shutil.Error(texts)):
        with pytest.raises(OutputError, match="the disk is full"), writing(tmp_path):
            try:
                raise cause
            except OSError as error:
                raise RuntimeError("files cannot be copied") from error
    with pytest.raises(RuntimeError), writing(tmp_path):
        raise RuntimeError("no fault of the disk") from OSError(errno.ENOENT, "missing")
