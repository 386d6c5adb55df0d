"""Runs the server until it is asked to end: uvicorn in front, MLflow's UI beside it."""

from __future__ import annotations

import logging
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import APIRouter

from lorahydra.errors import ConfigError, LorahydraError
from lorahydra.service.access import Access
from lorahydra.service.app import create_app
from lorahydra.service.mlflow_ui import LOOPBACK, end_ui, start_ui
from lorahydra.service.service import Service, ServiceConfig
from lorahydra.service.supervisor import ACTIVE

__all__ = ["ServerConfig", "serve"]

logger = logging.getLogger(__name__)

SECONDS_TO_CLOSE = 5
"""For requests that are being answered when the server ends."""
SECONDS_FOR_STORES = 120


@dataclass(frozen=True)
class ServerConfig:
    """Where the server listens."""

    access: Access
    port: int = 8000
    mlflow_port: int | None = 5000
    """Of MLflow's UI, on loopback; None starts none."""


def serve(server: ServerConfig, config: ServiceConfig, pages: Sequence[APIRouter] = ()) -> None:
    """Serve until Ctrl-C or SIGTERM; studies that run then go on.

    Args:
        server: Where.
        config: What.
        pages: Routers of the web page.

    Raises:
        ConfigError: A port is taken, or another server has the folder or the database.
        LorahydraError: The folder or the database cannot be used.
    """
    folder = config.folder.absolute()
    with _listening(server.access.host, server.port) as listener:
        if server.mlflow_port is not None:
            config = replace(config, mlflow_url=config.mlflow_url or f"http://{LOOPBACK}:{server.mlflow_port}")
        service = Service(config)
        service.open()  # the folder is this server's from here on, and so is the UI of one that was killed
        try:
            if server.mlflow_port is not None:
                end_ui(folder)
                with _listening(LOOPBACK, server.mlflow_port, "--mlflow-port"):
                    pass
                threading.Thread(target=_show_mlflow, args=(service, server.mlflow_port), daemon=True).start()
            _say(server, folder)
            _run(service, server, listener, pages)
        finally:
            try:
                _say_what_goes_on(service)
            finally:
                service.close()
                end_ui(folder)


def _run(service: Service, server: ServerConfig, listener: socket.socket, pages: Sequence[APIRouter]) -> None:
    app = create_app(service, server.access, pages=pages)
    settings = uvicorn.Config(
        app,
        log_config=None,
        log_level=logging.WARNING,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=SECONDS_TO_CLOSE,
        # The address of a proxy's client is not needed, and its headers could say anything.
        proxy_headers=False,
        ws="none",
    )
    _Server(settings, service).run(sockets=[listener])


class _Server(uvicorn.Server):
    """Tells streams of events that the end has come, so that it need not wait for them."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Called on Ctrl-C and SIGTERM."""
        self._service.announce_end()
        super().handle_exit(sig, frame)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals here; uvicorn would raise them once more when it has ended."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, self.handle_exit) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)


@contextmanager
def _listening(host: str, port: int, option: str = "--port") -> Iterator[socket.socket]:
    """A socket on the address.

    Raises:
        ConfigError: It is taken, or cannot be.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(128)
        except OSError as error:
            raise ConfigError(
                f"port {port} of {host} cannot be used ({error.strerror or error}): choose another with {option}"
            ) from error
        yield listener


def _say(server: ServerConfig, folder: Path) -> None:
    host = f"[{server.access.host}]" if ":" in server.access.host else server.access.host
    logger.info("lorahydra serves http://%s:%d (folder %s); end it with Ctrl-C", host, server.port, folder)


def _say_what_goes_on(service: Service) -> None:
    try:
        counts = service.counts()
    except LorahydraError as error:
        logger.warning("How many fine-tunes go on is not known: %s", error)
        return
    if running := sum(counts[state] for state in ACTIVE):
        logger.info("%d fine-tunes go on without the server; start it again to see them", running)


def _show_mlflow(service: Service, port: int) -> None:
    if service.wait_for_stores(SECONDS_FOR_STORES) and not service.is_closing:
        start_ui(service.config.folder, port)
        logger.info("MLflow's UI: http://%s:%d", LOOPBACK, port)
