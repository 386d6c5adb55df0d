"""Closes connections whose client does not send the rest of its request; uvicorn itself waits for it for ever."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["patient_protocol"]

BYTES_PER_SECOND = 1024
"""The slowest upload that is waited for, in the long run."""
LOOKS = 8
"""How often a connection is looked at in the time that a request may take."""
LATE = b"the rest of the request did not come in time\n"


def patient_protocol(seconds: float) -> type[H11Protocol]:
    """HTTP/1.1 for uvicorn: the head of a request, and a body that is slow, may take so many seconds."""

    class Protocol(_Patient):
        patience = seconds

    return Protocol


class _Patient(H11Protocol):
    patience: float

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._reset()
        self._look()

    def data_received(self, data: bytes) -> None:
        """Count what comes of a body, and begin anew with each request."""
        before = self.conn.their_state
        super().data_received(data)
        after = self.conn.their_state
        if after is h11.SEND_BODY and before is after:
            self._received += len(data)
        elif after is not before or after is h11.DONE:
            self._reset()

    def connection_lost(self, exc: Exception | None) -> None:
        """Look no more."""
        self._timer.cancel()
        super().connection_lost(exc)

    def _reset(self) -> None:
        self._waited, self._received = 0.0, 0

    def _look(self) -> None:
        pause = self.patience / LOOKS
        self._timer = self.loop.call_later(pause, self._look)
        # What the service is too busy to read is not the client's delay. Before the first byte of another request,
        # uvicorn's time for idle connections runs.
        if self.flow.read_paused or self.timeout_keep_alive_task is not None:
            return
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._reset()
            return
        self._waited += pause
        if self._waited >= self.patience + self._received / BYTES_PER_SECOND:
            self._refuse()

    def _refuse(self) -> None:
        if self.conn.our_state is h11.IDLE:
            headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(LATE))), ("Connection", "close")]
            events: list[Any] = [
                h11.Response(status_code=408, headers=headers),
                h11.Data(data=LATE),
                h11.EndOfMessage(),
            ]
            self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
        self.transport.close()
