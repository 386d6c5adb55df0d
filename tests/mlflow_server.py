"""A real MLflow server on loopback, as a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

SECONDS = 120
"""Longest wait for anything."""


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


class Server:
    """An MLflow server that can be killed and started again at the same address.

    Args:
        folder: Where it runs; artifacts go to `server-artifacts` in it.
        database: Address of its database; a SQLite file in its folder by default.
        options: More of `mlflow server`.
    """

    def __init__(self, folder: Path, database: str | None = None, options: Sequence[str] = ()) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.artifacts = folder / "server-artifacts"
        self._folder = folder
        self._database = database or f"sqlite:///{folder}/mlflow.db"
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if self._process is not None:
            return
        command = f"-m mlflow server --host 127.0.0.1 --port {self.port} --workers 1".split()
        command += ["--backend-store-uri", self._database]
        command += ["--serve-artifacts", "--artifacts-destination", str(self.artifacts), *self._options]
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, *command],
                cwd=self._folder,
                env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONWARNINGS": "ignore"},
                stdout=log,
                stderr=log,
                start_new_session=True,  # a server has children; all of them are killed
            )
        wait_for(self._answers)

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"{self.uri}{path}", timeout=10) as response:
            return bytes(response.read())

    def _answers(self) -> bool:
        try:
            return self.get("/health") == b"OK"
        except (OSError, urllib.error.URLError):
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
