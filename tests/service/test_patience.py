"""Half-sent requests on real sockets."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import uvicorn
from tests.support.ports import free_port
from tests.support.waiting import SECONDS, wait_for

from lorahydra.service import patience
from lorahydra.service.access import Access
from lorahydra.service.app import create_app
from lorahydra.service.patience import patient_protocol
from lorahydra.service.service import Service

PATIENCE = 0.4
DRIP = PATIENCE / 8
HEALTH = b"GET /api/v1/health HTTP/1.1\r\nHost: 127.0.0.1\r\n"
POST = (
    b"POST /api/v1/projects HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 12\r\n\r\n"
)
FORM = b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 90000\r\n\r\n--x\r\n"
UPLOAD = b"POST /api/v1/projects/1/datasets HTTP/1.1\r\nHost: 127.0.0.1\r\n" + FORM


@pytest.fixture
def connect(service: Service) -> Iterator[Callable[[], socket.socket]]:
    """Connects to a server that is patient for a short time."""
    port = free_port()
    settings = uvicorn.Config(
        create_app(service, Access()),
        port=port,
        log_config=None,
        ws="none",
        lifespan="off",
        http=patient_protocol(PATIENCE),
        timeout_keep_alive=round(SECONDS),
    )
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_for(lambda: server.started)
    made: list[socket.socket] = []

    def make() -> socket.socket:
        made.append(socket.create_connection(("127.0.0.1", port), timeout=SECONDS))
        return made[-1]

    yield make
    for one in made:
        one.close()
    server.should_exit = True
    thread.join()


def answer(connection: socket.socket, drip: bytes = b"") -> bytes:
    """All that the server says until it closes, while the client goes on with one byte at a time."""
    connection.setblocking(False)
    said, end = b"", time.monotonic() + SECONDS
    while time.monotonic() < end:
        try:
            content = connection.recv(65536)
            if not content:
                return said
            said += content
        except BlockingIOError:
            time.sleep(DRIP)
        except ConnectionResetError:
            return said
        try:
            connection.send(drip)
        except OSError:
            continue
    raise AssertionError("the connection is still open")


def one_answer(connection: socket.socket) -> bytes:
    """An answer in JSON, on a connection that stays open."""
    said = b""
    while not said.endswith(b"}"):
        said += connection.recv(65536)
    return said


@pytest.mark.parametrize("drip", [b"", b"x"])
@pytest.mark.parametrize("sent", [b"", b"GET /api", HEALTH + b"X-A: ", POST + b'{"na', UPLOAD])
def test_a_request_that_does_not_come_is_closed(
    connect: Callable[[], socket.socket], service: Service, sent: bytes, drip: bytes
) -> None:
    service.projects.create("Mine")
    connection = connect()
    connection.sendall(sent)
    said = answer(connection, drip if sent else b"")
    # A client that has not sent the whole head gets a reason.
    assert said.startswith(b"HTTP/1.1 408 " if b"\r\n\r\n" not in sent else b"")
    assert service.projects.page().total == 1
    assert service.datasets.page(1).total == 0


def test_the_second_request_of_a_connection_is_not_waited_for_longer(connect: Callable[[], socket.socket]) -> None:
    connection = connect()
    connection.sendall(HEALTH + b"\r\n")
    assert b'"status":"ok"' in one_answer(connection)
    connection.sendall(b"GET /")
    assert answer(connection).startswith(b"HTTP/1.1 408 ")


def test_an_idle_connection_and_a_slow_but_steady_body_stay_open(
    connect: Callable[[], socket.socket], service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "BYTES_PER_SECOND", 20)
    connection, body = connect(), b'{"name": "Slow but steady project"}'
    head = POST.replace(b"Length: 12", b"Length: %d" % len(body))
    for content in (HEALTH + b"\r\n", head):
        connection.sendall(content)
        if content.startswith(b"GET"):
            one_answer(connection)
            time.sleep(PATIENCE * 1.5)  # idle
    began = time.monotonic()
    for byte in body:
        connection.sendall(bytes([byte]))
        time.sleep(DRIP / 2)
    assert time.monotonic() - began > PATIENCE * 1.5
    assert one_answer(connection).startswith(b"HTTP/1.1 201 ")
