"""The background thread that carries a run's operations from the spool to the store."""

from __future__ import annotations

import logging
import shlex
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from lorahydra.tracking.compat import mute
from lorahydra.tracking.delivery import Delivery
from lorahydra.tracking.faults import describe
from lorahydra.tracking.mirrors import Mirrors
from lorahydra.tracking.operations import Operation
from lorahydra.tracking.spool import Spool
from lorahydra.utils.interrupts import interrupted

__all__ = ["SECONDS_AFTER_INTERRUPT", "Sender"]

logger = logging.getLogger(__name__)

SECONDS_TO_GATHER = 1.0
"""Between batches, so that many small values share a call."""
SECONDS_AFTER_INTERRUPT = 5.0
"""Longest wait for a store that cannot be reached, after the user has pressed Ctrl-C."""
FAILURES_TO_TELL = 2
"""Failures in a row before a warning: a single one is often a connection that the server had closed."""
LONGEST_PAUSE = 10.0
"""Between attempts while the store cannot be reached; the first pause is half a second, and each is twice the last."""
LONGEST_PAUSE_AT_END = 2.0
"""Longest pause when the trial has ended and someone waits."""


class Sender:
    """Sends what `spool` holds, in order, and tries again while the store cannot be reached.

    The thread, the only reader of the spool, starts with the object and ends with `finish`. `store` is the store's name
    for messages.
    """

    def __init__(self, spool: Spool, delivery: Delivery, mirrors: Mirrors, store: str) -> None:
        self._spool = spool
        self._mirrors = mirrors
        self._delivery = delivery
        self._store = store
        self._wake = threading.Condition()
        self._homeless: list[Operation] = []
        self._draining = False
        self._hurry = False
        self._stopped = False
        self._done = threading.Event()
        self._failed_at_end = False
        """An attempt has failed since the end began: the store may have come back before that."""
        self._failures = 0
        """Since the store last accepted something."""
        self._fault = ""
        """Why the last attempt failed, in words."""
        self._progress = time.monotonic()
        """When the store last accepted something."""
        self._thread = threading.Thread(target=self._run, name="lorahydra-tracking", daemon=True)
        self._thread.start()

    def notify(self) -> None:
        """Say that something was added to the spool."""
        with self._wake:
            self._wake.notify()

    def _drain(self, patience: float, homeless: Sequence[Operation]) -> bool:
        """Send everything that is left and end the thread; returns whether everything was sent."""
        asked = time.monotonic()
        try:
            with self._wake:
                self._homeless = list(homeless)
                self._draining = self._hurry = True
                self._wake.notify()
            while not self._done.wait(0.1):
                waited = time.monotonic() - max(asked, self._progress)
                limit = min(patience, SECONDS_AFTER_INTERRUPT) if interrupted() else patience
                if (self._failed_at_end and waited >= limit) or not self._thread.is_alive():
                    break
        finally:
            self._stop()
        return self._done.is_set()

    def finish(self, patience: float, homeless: Sequence[Operation] = ()) -> int:
        """Send everything that is left, and let go of the spool, which stays on disk if not everything was sent.

        Args:
            patience: Seconds to wait for a store that cannot be reached. As long as it accepts something, the wait
                goes on.
            homeless: Operations to send last, for which the disk had no room.

        Returns:
            How many entries could not be sent.
        """
        try:
            if self._drain(patience, homeless):
                self._spool.remove()
                return 0
            folder, here = self._spool.folder.parent.parent, Path.cwd()
            folder = folder.relative_to(here) if folder.is_relative_to(here) else folder
            unsent = self._spool.unsent()
            logger.warning(
                "%d entries of run %s were not sent to MLflow at %s (%s); run `%s` when the store is back",
                unsent,
                self._delivery.run_id,
                self._store,
                self._fault,
                f"lorahydra sync {shlex.quote(str(folder))}",
            )
            return unsent
        finally:
            self._spool.close()

    def _run(self) -> None:
        pause, finished = 0.0, False
        with mute():
            while not finished and self._wait(pause):
                self._mirrors.step()
                try:
                    finished = self._step()
                except Exception as error:
                    # The SDKs of artifact stores raise errors that have no common class, and the thread must
                    # outlive all of them.
                    self._note_failure(error)
                    pause = min(2 * pause or 0.5, LONGEST_PAUSE_AT_END if self._draining else LONGEST_PAUSE)
                    continue
                self._note_progress()
                pause = 0.0
            self._mirrors.close()
        if finished:
            self._done.set()

    def _step(self) -> bool:
        """Send one batch; True when draining and nothing is left."""
        draining = self._draining  # read first: what is logged before the end begins is in the spool by then
        if self._delivery.step() or not draining:
            return False
        while self._homeless:
            self._delivery.send_or_leave_out(self._homeless[0])
            del self._homeless[0]
        return True

    def _wait(self, pause: float) -> bool:
        """Wait for work, or for `pause` seconds after a failure; False when the thread is to end."""
        with self._wake:
            if pause:
                self._wake.wait_for(lambda: self._stopped or self._hurry, pause)
            else:
                self._wake.wait_for(lambda: self._stopped or self._draining or self._spool.has_more())
                self._wake.wait_for(lambda: self._stopped or self._draining, SECONDS_TO_GATHER)
            self._hurry = False
            return not self._stopped

    def _stop(self) -> None:
        with self._wake:
            self._stopped = True
            self._wake.notify()
        # Do not wait for a call that hangs: what it sends is sent again later, which is harmless.
        self._thread.join(timeout=1.0)

    def _note_failure(self, error: Exception) -> None:
        self._failures += 1
        self._failed_at_end = self._draining
        self._fault = describe(error)
        if self._failures == FAILURES_TO_TELL:
            logger.warning(
                "MLflow at %s cannot be reached: %s; the trial goes on, and what it logs waits in %s",
                self._store,
                self._fault,
                self._spool.folder,
            )

    def _note_progress(self) -> None:
        self._progress = time.monotonic()
        if self._failures >= FAILURES_TO_TELL:
            logger.info("MLflow at %s is back; sending what waited", self._store)
        self._failures = 0
        self._failed_at_end = False
