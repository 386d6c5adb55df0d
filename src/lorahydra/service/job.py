"""Runs the study of one job: `python -m lorahydra.service.job FOLDER`.

It is `lorahydra train -m …`, the same as `train.py -m …`, in a process of its own. Both processes hold the job's lock,
so that a job never runs twice, whoever starts it and whichever of them is killed.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

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
"""For the lock: longer than somebody needs to look at it."""
PREFIX = "lorahydra: "
"""Of the one line that a command ends with."""
TAIL_BYTES = 1 << 16


def main(folder: Path) -> None:
    """Run the study of the job in `folder`, unless it is being run or was."""
    # Ctrl-C is the study's matter; this process stays to write down how it ended. A handler, unlike SIG_IGN, is not
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
        begin = (folder / LOG_FILE).stat().st_size  # what stands before is of earlier attempts
        code = _study(job, descriptor)
        failure = None if code == 0 else _last_word(folder / LOG_FILE, begin)
        write_json(folder / ENDED_FILE, {"attempt": attempt, "exit_code": code, "failure": failure, "at": time.time()})


def _study(job: dict[str, Any], descriptor: int) -> int:
    own = {name: value for name, value in os.environ.items() if not name.startswith("LORA_")}
    environment = own | job["environment"] | {"PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "lorahydra", "train", "-m", *job["overrides"]]
    return subprocess.run(command, env=environment, pass_fds=[descriptor], check=False).returncode


def _last_word(log: Path, begin: int) -> str | None:
    """The line that says why the command failed; else the last line there is, from the byte `begin` on."""
    with log.open("rb") as stream:
        stream.seek(max(begin, log.stat().st_size - TAIL_BYTES))
        lines = [line.strip() for line in stream.read().decode("utf-8", "replace").splitlines() if line.strip()]
    said = [line.removeprefix(PREFIX) for line in lines if line.startswith(PREFIX)]
    found = said or lines
    if not found:
        return None
    # Here it goes on by `resume`, and not by a command.
    line = re.split(r"\. The adapter and the (?:answers|predictions) are kept|; the study is kept", found[-1])[0]
    # What a database or a page could not take is left out: colours, null characters.
    return "".join(char for char in line[:1000] if char.isprintable())


def _leave_it_to_the_study(number: int, frame: object) -> None:
    pass


if __name__ == "__main__":
    main(Path(sys.argv[1]))
