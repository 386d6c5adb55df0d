"""MLflow's UI beside the server, on loopback: `python -m lorahydra.service.mlflow_ui FOLDER PORT STORE` becomes it.

It writes down which process it is, so that the next server can end the UI of a server that was killed.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from lorahydra.service.processes import read_json, start_program, write_json
from lorahydra.utils.processes import is_alive, this_process

__all__ = ["LOOPBACK", "end_ui", "start_ui"]

LOOPBACK = "127.0.0.1"
PROCESS_FILE = "mlflow-ui.json"
LOG_FILE = "mlflow-ui.log"
SECONDS_TO_END = 5.0
SECONDS_TO_START = 60.0


def start_ui(folder: Path, port: int, store: str) -> None:
    """Start the UI of a store; returns as soon as `end_ui` can end it.

    MLflow's store must exist, because two processes that create its tables would disturb each other.
    """
    process = start_program(folder, LOG_FILE, "lorahydra.service.mlflow_ui", str(folder), str(port), store)
    deadline = time.monotonic() + SECONDS_TO_START
    while read_json(folder / PROCESS_FILE).get("pid") != process.pid and process.poll() is None:
        if time.monotonic() > deadline:
            process.kill()
        time.sleep(0.05)


def end_ui(folder: Path) -> None:
    """End the UI of this folder, no matter which process started it."""
    process = read_json(folder / PROCESS_FILE)
    deadline = time.monotonic() + SECONDS_TO_END
    while process and is_alive(process):
        late = time.monotonic() > deadline
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(int(process["pid"]), signal.SIGKILL if late else signal.SIGTERM)
        time.sleep(0.1)
    (folder / PROCESS_FILE).unlink(missing_ok=True)


def main(folder: Path, port: str, store: str) -> None:
    """Become MLflow's UI."""
    from lorahydra.tracking.address import resolve
    from lorahydra.tracking.store import quiet_environment

    quiet_environment()
    write_json(folder / PROCESS_FILE, this_process())
    os.environ["MLFLOW_BACKEND_STORE_URI"] = resolve(store)
    command = [sys.executable, "-m", "mlflow", "ui", "--host", LOOPBACK, "--port", port, "--workers", "1"]
    os.execv(command[0], command)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
