"""A real MLflow server on loopback, as a process of its own."""

from __future__ import annotations

import contextlib
import socket
import threading
import urllib.request
from pathlib import Path

from tests.support.ports import free_port
from tests.support.programs import ProgramRunner, RunningProgram, environment
from tests.support.waiting import SECONDS


class Server:
    """An MLflow server that can be killed and started again at the same address.

    It is the process that `mlflow server --serve-artifacts` starts, without those beside it that run jobs.

    Args:
        programs: What starts it.
        folder: Where it runs; artifacts go to `server-artifacts` in it.
        database: Address of its database; a SQLite file in its folder by default.
    """

    def __init__(self, programs: ProgramRunner, folder: Path, database: str | None = None) -> None:
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.artifacts = folder / "server-artifacts"
        self._programs = programs
        self._folder = folder
        self._database = database or f"sqlite:///{folder}/mlflow.db"
        self._running: RunningProgram | None = None

    def start(self) -> None:
        from mlflow.server import constants

        if self._running is not None:
            return
        settings = {
            constants.BACKEND_STORE_URI_ENV_VAR: self._database,
            constants.ARTIFACT_ROOT_ENV_VAR: "mlflow-artifacts:/",
            constants.SERVE_ARTIFACTS_ENV_VAR: "true",
            constants.ARTIFACTS_DESTINATION_ENV_VAR: str(self.artifacts),
            "_MLFLOW_SGI_NAME": "uvicorn",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        command = ["-m", "uvicorn", "--host", "127.0.0.1", "--port", str(self.port), "mlflow.server.fastapi_app:app"]
        self._running = self._programs.start(
            command, self._folder, environment(**settings), output=self._folder / "server.log"
        )
        self._running.wait_for(self._answers)

    def kill(self) -> None:
        if self._running is not None:
            self._running.kill()
            self._running.wait()
            self._running = None

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"{self.uri}{path}", timeout=SECONDS) as response:
            return bytes(response.read())

    def _answers(self) -> bool:
        # An answer from the database, whose tables the first question makes.
        try:
            return b"experiments" in self.get("/ajax-api/2.0/mlflow/experiments/search?max_results=1")
        except OSError:
            return False


class Gate:
    """A port of loopback that leads to another one, unless it is closed; then nothing listens there.

    Args:
        port: Where it leads.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._connections: list[socket.socket] = []
        self._listening: socket.socket | None = None
        self.port = 0
        self.open()

    def open(self) -> None:
        if self._listening is None:
            self._listening = socket.create_server(("127.0.0.1", self.port))
            self.port = self._listening.getsockname()[1]
            threading.Thread(target=self._accept, args=(self._listening,), daemon=True).start()

    def close(self) -> None:
        for ours in (self._listening, *self._connections):
            if ours is not None:
                with contextlib.suppress(OSError):
                    ours.shutdown(socket.SHUT_RDWR)
                ours.close()
        self._listening, self._connections = None, []

    def _accept(self, listening: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                here, _ = listening.accept()
                there = socket.create_connection(("127.0.0.1", self._port))
                self._connections += [here, there]
                for one, other in ((here, there), (there, here)):
                    threading.Thread(target=self._pass_on, args=(one, other), daemon=True).start()

    def _pass_on(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
