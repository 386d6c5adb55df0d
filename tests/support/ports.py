"""Ports of loopback."""

from __future__ import annotations

import socket

_reserved: list[socket.socket] = []


def free_port() -> int:
    """A port that nothing listens on, and that no other program gets by chance while this process lives.

    A socket stays bound to it. A server may take the port, because servers set SO_REUSEADDR; the system gives it to
    nobody who asks for any free port.
    """
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind(("127.0.0.1", 0))
    _reserved.append(reserved)
    return int(reserved.getsockname()[1])
