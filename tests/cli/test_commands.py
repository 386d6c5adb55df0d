"""`lorahydra` as a process: usage errors are one line with exit code 2, and Ctrl-C ends with 130."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

LORAHYDRA = str(Path(sys.executable).parent / "lorahydra")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["frobnicate"], "No such command 'frobnicate'"),
        (["models", "fetch", "no-such-model"], "no-such-model"),
        (["data", "check", "no-such-file.jsonl"], "no-such-file.jsonl"),
        (["sync", "no-such-folder"], "no-such-folder"),
        (["sync", "--frobnicate"], "--frobnicate"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], words: str, tmp_path: Path) -> None:
    done = subprocess.run([LORAHYDRA, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    [line] = done.stderr.strip().splitlines()
    assert line.startswith("lorahydra: ")
    assert words in line


def test_help_and_version(tmp_path: Path) -> None:
    for option in ("--help", "--version"):
        done = subprocess.run([LORAHYDRA, option], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert "lorahydra" in done.stdout.lower()


def test_a_full_disk_without_a_file_name_is_one_line() -> None:
    script = (
        "import errno\nfrom lorahydra.cli.exits import exit_codes\n"
        "with exit_codes():\n    raise OSError(errno.ENOSPC, 'No space left on device')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "lorahydra: cannot read or write a file: the disk is full\n")


def test_ctrl_c_ends_with_130() -> None:
    script = (
        "import os, signal, sys, click\n"
        "from lorahydra.cli import commands\n"
        "@commands.commands.command()\n"
        "def wait():\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.argv = ['lorahydra', 'wait']\n"
        "commands.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 128 + signal.SIGINT
    assert done.stderr.strip() == "lorahydra: interrupted"
