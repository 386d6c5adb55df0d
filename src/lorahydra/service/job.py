"""Runs the study of one job: `python -m lorahydra.service.job FOLDER`.

It is `lorahydra train -m …` in a process of its own. Both processes hold the lock of the job, so it never runs
twice: it does not matter who starts it or which of the two is killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from lorahydra.errors import PREDICTIONS_KEPT, STUDY_KEPT
from lorahydra.service.processes import (
    ENDED_FILE,
    JOB_FILE,
    LOG_FILE,
    NICENESS,
    PROCESS_FILE,
    hold,
    read_json,
    write_json,
)
from lorahydra.utils.processes import this_process

__all__ = ["main"]

SECONDS_TO_WAIT = 5.0
"""Time to wait for the lock: longer than others need to check whether it is held."""
PREFIX = "lorahydra: "
"""Begins the one line in which a command says why it failed."""
TAIL_BYTES = 1 << 16


def main(folder: Path) -> None:
    """Run the study of the job in `folder`, unless it is running or has run."""
    # The study handles Ctrl-C, and this process stays to write down how it ended. Unlike SIG_IGN, a handler is not
    # inherited.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave_it_to_the_study)
    os.nice(NICENESS)
    with hold(folder, SECONDS_TO_WAIT) as descriptor:
        job = read_json(folder / JOB_FILE)
        attempt = job.get("attempt")
        if descriptor is None or attempt is None or read_json(folder / ENDED_FILE).get("attempt") == attempt:
            return
        write_json(folder / PROCESS_FILE, {"attempt": attempt, **this_process()})
        begin = (folder / LOG_FILE).stat().st_size  # what stands before belongs to earlier attempts
        code = _study(job, descriptor)
        failure = None if code == 0 else _last_word(folder / LOG_FILE, begin)
        write_json(folder / ENDED_FILE, {"attempt": attempt, "exit_code": code, "failure": failure, "at": time.time()})


def _study(job: dict[str, Any], descriptor: int) -> int:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LORA_")}
    environment = inherited | job["environment"] | {"PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "lorahydra", "train", "-m", *job["overrides"]]
    return subprocess.run(command, env=environment, pass_fds=[descriptor], check=False).returncode


def _last_word(log: Path, begin: int) -> str | None:
    """The line that says why the command failed, else the last line; only what follows byte `begin` counts."""
    with log.open("rb") as stream:
        stream.seek(max(begin, log.stat().st_size - TAIL_BYTES))
        lines = [line.strip() for line in stream.read().decode("utf-8", "replace").splitlines() if line.strip()]
    reasons = [line.removeprefix(PREFIX) for line in lines if line.startswith(PREFIX)] or lines
    if not reasons:
        return None
    # A fine-tune is continued by `resume`, and not by a command.
    line = reasons[-1].partition(STUDY_KEPT)[0].partition(PREDICTIONS_KEPT)[0]
    # A database or a page cannot take colours or null characters.
    return "".join(char for char in line[:1000] if char.isprintable())


def _leave_it_to_the_study(number: int, frame: object) -> None:
    pass


if __name__ == "__main__":
    main(Path(sys.argv[1]))
