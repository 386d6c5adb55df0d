"""Verdicts that were given before: one SQLite file, shared by all processes of a user.

Besides verdicts it holds claims. A process claims a verdict before it asks for it, and the others wait instead of
asking too. A claim ends with its process; one from another machine expires. `diskcache` is not used because its locks
outlive a process that is killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from lorahydra.errors import OutputError
from lorahydra.judges.base import JudgeCase, Verdict
from lorahydra.utils.files import cache_dir, locked
from lorahydra.utils.processes import is_alive, this_process

__all__ = ["VerdictCache", "new_owner", "verdict_key"]

logger = logging.getLogger(__name__)

SECONDS_TO_WAIT_FOR_A_WRITER = 30.0
SECONDS_BETWEEN_LOOKS = 0.2
"""At a verdict that another process has claimed."""
TABLES = """
CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, judge TEXT, model TEXT, created REAL, verdict TEXT);
CREATE TABLE IF NOT EXISTS claims (key TEXT PRIMARY KEY, owner TEXT, until REAL);
"""


def new_owner() -> str:
    """The name of a process that claims a verdict; others on this machine can tell from it whether it is alive."""
    return json.dumps({**this_process(), "id": uuid.uuid4().hex})


def _is_alive(owner: str) -> bool | None:
    """Whether the process that claims is alive; None if that cannot be seen from here."""
    try:
        return is_alive(json.loads(owner))
    except ValueError:  # written by an earlier version; it expires
        return None


def verdict_key(judge: str, model: str, identity: str, prompt_version: str, case: JudgeCase, repeat: int) -> str:
    """The key of one verdict.

    Args:
        judge: Name of the judge.
        model: The model that is asked.
        identity: Whatever else changes verdicts, see `Judge.identity`.
        prompt_version: Digest of prompt and rubric.
        case: What is judged.
        repeat: 0 for the first verdict of a case, 1 for the second …
    """
    content = [judge, model, identity, prompt_version, case.question, case.reference, case.answer, repeat]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


class VerdictCache:
    """Looks up, stores and claims verdicts; may be used from several threads and processes.

    Args:
        path: The file; `judge/verdicts.sqlite` in the cache folder when left out.

    Raises:
        OutputError: The file cannot be created, or is not a cache.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or cache_dir() / "judge" / "verdicts.sqlite"
        self._warned = False
        try:
            # Without the lock, two processes that turn on the write-ahead log of a new file do not wait for each other.
            with locked(self.path), self._transaction() as database:
                database.execute("PRAGMA journal_mode=WAL")
                database.executescript(TABLES)
        except sqlite3.Error as error:
            raise OutputError(
                f"the cache of verdicts {self.path} cannot be used ({error}): delete it, name another folder in "
                "LORAHYDRA_CACHE, or set judge.cache=false"
            ) from error

    def get(self, key: str, *, max_age: float | None = None) -> Verdict | None:
        """The verdict, with latency 0; None if there is none, or it is older than `max_age` seconds."""
        oldest = 0.0 if max_age is None else time.time() - max_age
        with self._safely("read"), self._transaction() as database:
            row = database.execute(
                "SELECT verdict FROM verdicts WHERE key = ? AND created >= ?", (key, oldest)
            ).fetchone()
            return None if row is None else Verdict(**json.loads(row[0]) | {"latency": 0.0})
        return None

    def put(self, key: str, judge: str, verdict: Verdict) -> None:
        """Store a verdict and end the claim on it."""
        row = (key, judge, verdict.model, time.time(), json.dumps(asdict(verdict)))
        with self._safely("written"), self._transaction() as database:
            database.execute("INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?, ?, ?)", row)
            database.execute("DELETE FROM claims WHERE key = ?", (key,))

    def get_or_claim(self, key: str, owner: str, seconds: float, stop: threading.Event) -> Verdict | None:
        """The verdict, waiting for it where another process has claimed it.

        Args:
            key: Of the verdict.
            owner: From `new_owner`.
            seconds: For `claim`.
            stop: Set when it is not worth waiting any more.

        Returns:
            None when `owner` has claimed it now, or `stop` was set.
        """
        while (verdict := self.get(key)) is None:
            if self.claim(key, owner, seconds):
                # Between the look and the claim, another process may have stored it.
                return self.get(key)
            if stop.wait(SECONDS_BETWEEN_LOOKS):
                break
        return verdict

    def claim(self, key: str, owner: str, seconds: float) -> bool:
        """Claim a verdict for `owner` (from `new_owner`) for `seconds`; False if another owner has claimed it.

        To claim again prolongs the claim; the claim of a process that died on this machine does not count.
        """
        now = time.time()
        with self._safely("written"), self._transaction() as database:
            holder = database.execute("SELECT owner FROM claims WHERE key = ?", (key,)).fetchone()
            if holder is not None and holder[0] != owner:
                alive = _is_alive(holder[0])
                if alive:
                    return False
                if alive is False:
                    database.execute("DELETE FROM claims WHERE key = ? AND owner = ?", (key, holder[0]))
            changed = database.execute(
                "INSERT INTO claims VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE SET owner = excluded.owner, "
                "until = excluded.until WHERE owner = excluded.owner OR until < ?",
                (key, owner, now + seconds, now),
            ).rowcount
            return changed > 0
        return True

    def release(self, key: str, owner: str) -> None:
        """End a claim without a verdict."""
        with self._safely("written"), self._transaction() as database:
            database.execute("DELETE FROM claims WHERE key = ? AND owner = ?", (key, owner))

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
        except (sqlite3.Error, ValueError, TypeError) as error:
            if not self._warned:
                self._warned = True
                logger.warning("The cache of verdicts %s cannot be %s: %s", self.path, what, error)
