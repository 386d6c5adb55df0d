"""Verdicts that were given before: one SQLite file, shared by all processes of a user.

`diskcache` is not used: its locks outlive a process that is killed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from lorahydra.errors import OutputError
from lorahydra.judges.base import Verdict
from lorahydra.utils.files import data_cache_dir, locked

__all__ = ["VerdictCache"]

logger = logging.getLogger(__name__)

SECONDS_TO_WAIT_FOR_A_WRITER = 30.0
TABLE = "CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, judge TEXT, model TEXT, created REAL, verdict TEXT)"


class VerdictCache:
    """Looks up and stores verdicts; may be used from several threads and processes.

    Raises:
        OutputError: The file cannot be created, or is not a cache.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or data_cache_dir() / "judge" / "verdicts.sqlite"
        self._warned = False
        try:
            # Without the lock, two processes that turn on the write-ahead log of a new file do not wait for each other.
            with locked(self.path), self._transaction() as database:
                database.execute("PRAGMA journal_mode=WAL")
                database.execute(TABLE)
        except sqlite3.Error as error:
            raise OutputError(
                f"the cache of verdicts {self.path} cannot be used ({error}): delete it, name another folder in "
                "LORAHYDRA_CACHE, or set judge.cache=false"
            ) from error

    def get(self, key: str, *, max_age: float | None = None) -> Verdict | None:
        """The verdict, with latency 0; None if there is none, or it is older than `max_age` seconds."""
        oldest = 0.0 if max_age is None else time.time() - max_age
        with self._safely("read"), self._transaction() as database:
            query = "SELECT verdict FROM verdicts WHERE key = ? AND created >= ?"
            row = database.execute(query, (key, oldest)).fetchone()
            return None if row is None else Verdict(**json.loads(row[0]) | {"latency": 0.0})
        return None

    def put(self, key: str, judge: str, verdict: Verdict) -> None:
        """Store a verdict."""
        row = (key, judge, verdict.model, time.time(), json.dumps(asdict(verdict)))
        with self._safely("written"), self._transaction() as database:
            database.execute("INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?, ?, ?)", row)

    @contextlib.contextmanager
    def claimed(self, key: str, stop: threading.Event) -> Iterator[None]:
        """Hold the claim on a verdict, for which no other thread or process asks meanwhile.

        A claim ends with its process. The block also begins, without a claim, when `stop` is set.
        """
        from filelock import FileLock, Timeout

        # The files of locks stay, so that a few keys share one.
        lock = FileLock(self.path.parent / "claims" / key[:3], thread_local=False)
        try:
            with self._safely("locked"), contextlib.suppress(Timeout):
                Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
                lock.acquire(cancel_check=stop.is_set)
            yield
        finally:
            lock.release(force=True)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        # Connections may not cross threads; opening one takes a thousandth of the time of a call.
        with contextlib.closing(sqlite3.connect(self.path, timeout=SECONDS_TO_WAIT_FOR_A_WRITER)) as database:
            database.execute("PRAGMA synchronous=NORMAL")
            with database:
                yield database

    @contextlib.contextmanager
    def _safely(self, what: str) -> Iterator[None]:
        """Go on without the cache if the disk is full or the file is damaged: verdicts are worth more."""
        try:
            yield
        except (sqlite3.Error, OSError, ValueError, TypeError) as error:
            if not self._warned:
                self._warned = True
                logger.warning("The cache of verdicts %s cannot be %s: %s", self.path, what, error)
