"""Starts `lorahydra serve` for the benchmarks of the service."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.service.served import free_port

SECONDS = 300
"""Longest wait for anything."""


@contextmanager
def served(
    folder: Path,
    log: Path,
    environment: Mapping[str, str] | None = None,
    options: Sequence[str] = (),
    port: int | None = None,
) -> Iterator[tuple[int, int]]:
    """Serve from an empty folder, with more options of `lorahydra serve`; returns port and process."""
    port = port or free_port()
    command = [sys.executable, "-m", "lorahydra", "serve", "--folder", str(folder), "--port", str(port), "--no-mlflow"]
    command += options
    with log.open("w") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | dict(environment or {}))
    try:
        wait(lambda: call(port, "/api/v1/health")["status"] == "ok")
        yield port, server.pid
    finally:
        server.terminate()
        server.wait()


def call(port: int, path: str, body: Mapping[str, Any] | None = None) -> Any:
    """One request of the API."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def wait(there: Callable[[], bool]) -> None:
    """Ask until a condition holds; a refused connection or request counts as no."""
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            if there():
                return
        except OSError:
            pass
        if time.monotonic() > deadline:
            sys.exit("the server did not get there")
        time.sleep(0.2)
