"""Uploads that were refused with an offer: they wait for the user's answer, so that the file need not be sent again."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from lorahydra.service.errors import InvalidError
from lorahydra.service.uploads import Upload

__all__ = ["HeldUploads"]

SECONDS = 3600.0
MOST = 8
"""Number of uploads that wait; the oldest one goes first."""


@dataclass(frozen=True)
class _Held:
    project_id: int
    upload: Upload
    offer: Mapping[str, Any]
    since: float


class HeldUploads:
    """The waiting uploads of one server, by a token; methods may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[str, _Held] = {}

    def hold(self, project_id: int, upload: Upload, offer: Mapping[str, Any]) -> str:
        """Keep an upload and what was offered; returns its token."""
        token, now = secrets.token_urlsafe(18), time.monotonic()
        upload.hold()
        with self._lock:
            self._held[token] = _Held(project_id, upload, offer, now)
            gone = [self._held.pop(name) for name in list(self._held)[:-MOST]]
        for held in gone:
            held.upload.close()
        return token

    def expire(self, now: float | None = None) -> None:
        """Remove those that have waited too long; `now` is as of `time.monotonic`."""
        before = (time.monotonic() if now is None else now) - SECONDS
        with self._lock:
            gone = [self._held.pop(name) for name, held in list(self._held.items()) if held.since < before]
        for held in gone:
            held.upload.close()

    @contextmanager
    def take(self, project_id: int, token: str) -> Iterator[tuple[Upload, Mapping[str, Any]]]:
        """Take an upload out; it is removed after the block unless it was kept or held again.

        Raises:
            InvalidError: It has waited too long, or was taken before.
        """
        with self._lock:
            held = self._held.get(token)
            if held is not None and held.project_id == project_id:
                del self._held[token]
            else:
                held = None
        if held is None:
            raise InvalidError("the file has waited too long for an answer: upload it again", "upload_expired")
        with held.upload as upload:
            yield upload, held.offer

    def drop(self, project_id: int) -> None:
        """Remove those that were sent to a project."""
        with self._lock:
            names = [name for name, held in self._held.items() if held.project_id == project_id]
            gone = [self._held.pop(name) for name in names]
        for held in gone:
            held.upload.close()

    def close(self) -> None:
        """Remove all."""
        for project_id in {held.project_id for held in list(self._held.values())}:
            self.drop(project_id)
