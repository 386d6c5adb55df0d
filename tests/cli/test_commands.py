"""`lorahydra` as a process: usage errors are one line with exit code 2, and Ctrl-C ends with 130."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from tests.support.programs import ProgramRunner

from lorahydra.cli.commands import commands

LORAHYDRA = str(Path(sys.executable).parent / "lorahydra")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["frobnicate"], "No such command 'frobnicate'"),
        (["models", "fetch", "no-such-model"], "no-such-model"),
        (["sync", "no-such-folder"], "no-such-folder"),
        (["sync", "--frobnicate"], "--frobnicate"),
        (["studies", "resum"], "Did you mean 'resume'? (see lorahydra studies --help)"),
        (["judges", "check"], "Missing argument 'NAME'. (see lorahydra judges check --help)"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], words: str, tmp_path: Path, runner: ProgramRunner) -> None:
    done = runner.run(["-m", "lorahydra", *arguments], tmp_path)
    assert done.returncode == 2
    [line] = done.stderr.strip().splitlines()
    assert line.startswith("lorahydra: ")
    assert words in line


GROUPS = ["", *(name for name, command in commands.commands.items() if isinstance(command, click.Group))]


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_shows_its_commands_one_a_line(group: str) -> None:
    asked = CliRunner().invoke(commands, [*group.split(), "--help"], prog_name="lorahydra", terminal_width=80)
    bare = CliRunner().invoke(commands, group.split(), prog_name="lorahydra", terminal_width=80)
    assert asked.exit_code == 0
    assert bare.exit_code == 2, "as other programs made with click: nothing was asked for"
    assert bare.stderr == asked.stdout
    lines = asked.stdout.partition("Commands:\n")[2].splitlines()
    listed = commands.commands[group].commands if group else commands.commands  # type: ignore[attr-defined]
    assert [line.split()[0] for line in lines] == sorted(listed)
    assert all(line.endswith(".") and not line.endswith("...") for line in lines)


def test_a_bare_command_shows_help_and_no_error(tmp_path: Path, runner: ProgramRunner) -> None:
    done = runner.run(["-m", "lorahydra", "studies"], tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: lorahydra studies [OPTIONS] COMMAND [ARGS]...\n")


COMPLETION = """
eval "$(_LORAHYDRA_COMPLETE=bash_source lorahydra)"
COMP_WORDS=($LINE) COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_lorahydra_completion lorahydra
echo "${COMPREPLY[*]}"
"""


@pytest.mark.parametrize(
    ("line", "offered"),
    [("lorahydra judges ch", "check"), ("lorahydra judges check gem", "gemini gemini_legacy")],
)
def test_bash_completes(line: str, offered: str, tmp_path: Path) -> None:
    environment = {**os.environ, "LINE": line, "PATH": f"{Path(LORAHYDRA).parent}:{os.environ['PATH']}"}
    command = ["bash", "-c", COMPLETION]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == offered


@pytest.mark.slow
def test_letters_that_the_terminal_does_not_have_are_spelled_out(tmp_path: Path, programs: ProgramRunner) -> None:
    (tmp_path / "вопросы.jsonl").write_text('{"prompt": "1", "completion": "2"}', encoding="utf-8")
    script = (
        "import sys\nfrom lorahydra.cli.commands import main\n"
        "sys.stdout.reconfigure(encoding='latin-1')\n"
        "sys.argv = ['lorahydra', 'data', 'check', 'вопросы.jsonl']\nmain()\n"
    )
    assert programs.run(["-c", script], tmp_path).stdout.startswith(r"\u0432\u043e\u043f")


def test_a_reader_that_is_gone_ends_the_command_quietly(tmp_path: Path) -> None:
    command = f"{LORAHYDRA} models list | true"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_help_and_version(tmp_path: Path) -> None:
    for option in ("--help", "--version"):
        done = subprocess.run([LORAHYDRA, option], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert "lorahydra" in done.stdout.lower()


def test_a_full_disk_without_a_file_name_is_one_line(tmp_path: Path, runner: ProgramRunner) -> None:
    script = (
        "import errno\nfrom lorahydra.cli.exits import exit_codes\n"
        "with exit_codes():\n    raise OSError(errno.ENOSPC, 'No space left on device')"
    )
    done = runner.run(["-c", script], tmp_path)
    assert (done.returncode, done.stderr) == (2, "lorahydra: cannot read or write a file: the disk is full\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_every_command_with_130_also_where_a_library_swallows_it(
    number: signal.Signals, tmp_path: Path, runner: ProgramRunner
) -> None:
    script = (
        "import contextlib, os, sys\n"
        "from lorahydra.cli import commands\n"
        "@commands.commands.command()\n"
        "def wait():\n"
        "    with contextlib.suppress(BaseException):\n"
        f"        os.kill(os.getpid(), {number:d})\n"
        "    print('the library went on')\n"
        "sys.argv = ['lorahydra', 'wait']\n"
        "commands.main()\n"
    )
    done = runner.run(["-c", script], tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (
        130,
        "the library went on\n",
        "lorahydra: interrupted\n",
    )
