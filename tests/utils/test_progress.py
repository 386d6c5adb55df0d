"""Progress: plain lines without a terminal, and a bar that leaves log lines readable on one."""

from __future__ import annotations

import logging
import os
import pty
import subprocess
import sys
from contextlib import suppress
from types import SimpleNamespace

import pytest

from lorahydra.utils import progress as progress_module
from lorahydra.utils.progress import Progress, console

ON_A_TERMINAL = """
import logging, sys
from lorahydra.utils.progress import Progress
logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stdout)
with Progress().task("Training", 3) as advance:
    for step in range(3):
        advance(1, f"loss {step}")
        logging.info("line %d", step)
logging.info("after")
"""


def test_plain_lines_come_now_and_then(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(progress_module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with Progress(live=False).task("Training", 4) as advance:
        for step in range(4):
            advance(1, f"loss {step}")
    lines = [record.getMessage() for record in caplog.records]
    assert lines == ["Training: 2 of 4, loss 1"], "every 15 seconds, and not for the end"


def test_nothing_is_drawn_without_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with Progress().task("Training", 2) as advance:
        advance(2, "")
    assert capfd.readouterr() == ("", "")


def test_tables_in_a_log_are_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert console().width == 120
    monkeypatch.setenv("COLUMNS", "90")
    assert console().width == 90


def test_log_lines_stay_whole_beside_the_bar() -> None:
    main, terminal = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    command = [sys.executable, "-c", ON_A_TERMINAL]
    process = subprocess.Popen(command, stdout=terminal, stderr=terminal, env=environment)
    os.close(terminal)
    written = b""
    # A terminal gives what was written in pieces, and an error after the last one.
    with suppress(OSError):
        while piece := os.read(main, 4096):
            written += piece
    os.close(main)
    output = written.decode()
    assert process.wait() == 0
    assert "Training" in output
    assert "3/3" in output
    for line in ("line 0", "line 1", "line 2", "after"):
        # Alone on its line: the bar was cleared before it and drawn again below.
        assert f"{line}\r\n" in output
        assert output.split(f"{line}\r\n")[0].endswith(("\n", "\x1b[2K", "\r"))
