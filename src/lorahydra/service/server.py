"""Runs the server until it is asked to end: uvicorn in front, MLflow's UI beside it."""

from __future__ import annotations

import logging
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvicorn

from lorahydra.errors import ConfigError, LorahydraError
from lorahydra.service.access import Access
from lorahydra.service.app import create_app
from lorahydra.service.folders import TEMPORARY
from lorahydra.service.mlflow_ui import LOOPBACK, end_ui, start_ui
from lorahydra.service.patience import patient_protocol
from lorahydra.service.service import Service, ServiceConfig
from lorahydra.service.supervisor import ACTIVE
from lorahydra.tracking.address import is_server
from lorahydra.utils.files import remove, writing

__all__ = ["serve"]

logger = logging.getLogger(__name__)

SECONDS_TO_CLOSE = 5
"""Time for requests that are being answered when the server ends."""
SECONDS_FOR_STORES = 120


def serve(config: ServiceConfig, access: Access, port: int = 8000, mlflow_port: int | None = 5000) -> None:
    """Serve until Ctrl-C or SIGTERM; running studies then continue without the server.

    Args:
        config: How the service is set up.
        access: Where the server listens, and who may ask.
        port: Its port.
        mlflow_port: Port of MLflow's UI on loopback; None does not start it.

    Raises:
        ConfigError: A port is taken, or another server uses the folder or the database.
        LorahydraError: The folder or the database cannot be used.
    """
    folder = config.folder.absolute()
    with _listening(access.host, port) as listener, ExitStack() as stack:
        if is_server(config.tracking_uri or ""):
            mlflow_port = None  # the store has a UI of its own
            config = replace(config, mlflow_url=config.mlflow_url or config.tracking_uri)
        elif mlflow_port is not None:
            config = replace(config, mlflow_url=config.mlflow_url or f"http://{LOOPBACK}:{mlflow_port}")
        service = Service(config)
        service.open()  # from here on the folder is this server's, and so is the UI that a killed server left
        _keep_temporary_files_in(folder / TEMPORARY)
        stack.callback(end_ui, folder)  # after the others
        stack.callback(service.close)
        stack.callback(_say_what_continues, service)
        if mlflow_port is not None:
            end_ui(folder)
            with _listening(LOOPBACK, mlflow_port, "--mlflow-port"):
                pass
            threading.Thread(target=_show_mlflow, args=(service, mlflow_port), daemon=True).start()
        _run(service, access, listener)


def _keep_temporary_files_in(folder: Path) -> None:
    """Put temporary files, which may hold users' data, where the next server removes what a killed one has left."""
    remove(folder)
    with writing(folder):
        folder.mkdir(mode=0o700)
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)


def _run(service: Service, access: Access, listener: socket.socket) -> None:
    host = f"[{access.host}]" if ":" in access.host else access.host
    address = f"http://{host}:{listener.getsockname()[1]}"
    logger.info("lorahydra serves %s (folder %s); end it with Ctrl-C", address, service.config.folder)
    settings = uvicorn.Config(
        create_app(service, access),
        log_config=None,
        log_level=logging.WARNING,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=SECONDS_TO_CLOSE,
        # The address of a proxy's client is not needed, and the headers that name it could say anything.
        proxy_headers=False,
        ws="none",
        http=patient_protocol(service.config.request_seconds),
    )
    _Server(settings, service).run(sockets=[listener])


class _Server(uvicorn.Server):
    """Tells streams of events that the end has come, so that it does not have to wait for them."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Called on Ctrl-C and SIGTERM."""
        self._service.closing.set()
        super().handle_exit(sig, frame)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals only here; uvicorn would raise them again when it has ended."""
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
        ConfigError: The address is taken, or not one of this machine.
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


def _say_what_continues(service: Service) -> None:
    try:
        counts = service.jobs.counts()
    except LorahydraError as error:
        logger.warning("The number of fine-tunes that continue is not known: %s", error)
        return
    if running := sum(counts[state] for state in ACTIVE):
        logger.info("%d fine-tunes continue without the server; start it again to see them", running)


def _show_mlflow(service: Service, port: int) -> None:
    if service.supervisor.ready.wait(SECONDS_FOR_STORES) and not service.closing.is_set():
        start_ui(service.config.folder, port, service.stores.tracking.uri)
        logger.info("MLflow's UI: http://%s:%d", LOOPBACK, port)
