"""The background thread that carries a run's operations from the spool to the store."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence

from lorahydra.tracking.compat import mute
from lorahydra.tracking.delivery import Delivery
from lorahydra.tracking.faults import describe
from lorahydra.tracking.operations import Operation
from lorahydra.tracking.spool import Spool
from lorahydra.utils.interrupts import interrupted

__all__ = ["SECONDS_AFTER_INTERRUPT", "Sender"]

logger = logging.getLogger(__name__)

SECONDS_TO_GATHER = 1.0
"""Between batches, so that many small values share a call."""
SECONDS_AFTER_INTERRUPT = 5.0
"""Longest wait for a store that is away, when the user has pressed Ctrl-C."""
FAILURES_TO_TELL = 2
"""In a row; a single one is often a connection that the server had closed."""
LONGEST_PAUSE = 10.0
"""Between attempts while the store is away; the first pause is half a second, each next one twice as long."""
LONGEST_PAUSE_AT_END = 2.0
"""The same when the trial has ended and someone waits."""


class Sender:
    """Sends what `spool` holds, in order, retrying for as long as the store is away.

    The thread starts with the object and ends with `drain`.

    Args:
        spool: The queue; this thread is its only reader.
        delivery: Does the calls.
        store: The store's name for messages.
    """

    def __init__(self, spool: Spool, delivery: Delivery, store: str) -> None:
        self._spool = spool
        self._delivery = delivery
        self._store = store
        self._wake = threading.Condition()
        self._homeless: list[Operation] = []
        self._draining = False
        self._hurry = False
        self._stopped = False
        self._done = threading.Event()
        self._failed_at_end = False
        """An attempt failed since `drain`: before that, the store may be back without our knowing."""
        self._failures = 0
        """Since the store last took something."""
        self.fault = ""
        """Why the last attempt failed, in words."""
        self._progress = time.monotonic()
        """When the store last took something."""
        self._thread = threading.Thread(target=self._run, name="lorahydra-tracking", daemon=True)
        self._thread.start()

    def notify(self) -> None:
        """Say that something was added to the spool."""
        with self._wake:
            self._wake.notify()

    def drain(self, patience: float, homeless: Sequence[Operation] = ()) -> bool:
        """Send everything that is left and end the thread.

        Args:
            patience: How long to wait in seconds for a store that is away. As long as it takes things in, the
                wait goes on.
            homeless: Operations to send last that found no room on the disk.

        Returns:
            Whether everything was sent.
        """
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

    def _run(self) -> None:
        pause = 0.0
        with mute():
            while self._wait(pause):
                try:
                    finished = self._step()
                except Exception as error:
                    # Artifact stores raise errors of their own SDKs, which have no common class; the thread
                    # must outlive all of them.
                    self._note_failure(error)
                    pause = min(2 * pause or 0.5, LONGEST_PAUSE_AT_END if self._draining else LONGEST_PAUSE)
                    continue
                self._note_progress()
                pause = 0.0
                if finished:
                    self._done.set()
                    return

    def _step(self) -> bool:
        """Send one batch; True when draining and nothing is left."""
        draining = self._draining  # read first: what is logged before `drain` is in the spool by then
        if self._delivery.step() or not draining:
            return False
        while self._homeless:
            self._delivery.send_or_leave_out(self._homeless[0])
            del self._homeless[0]
        return True

    def _wait(self, pause: float) -> bool:
        """Wait for work, or for `pause` seconds after a failure; False when the thread shall end."""
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
        # A call that hangs is not waited for: what it sends is sent again later, which is harmless.
        self._thread.join(timeout=1.0)

    def _note_failure(self, error: Exception) -> None:
        self._failures += 1
        self._failed_at_end = self._draining
        self.fault = describe(error)
        if self._failures == FAILURES_TO_TELL:
            logger.warning(
                "MLflow at %s is away: %s; the trial goes on, and what it logs waits in %s",
                self._store,
                self.fault,
                self._spool.folder,
            )

    def _note_progress(self) -> None:
        self._progress = time.monotonic()
        if self._failures >= FAILURES_TO_TELL:
            logger.info("MLflow at %s is back; sending what waited", self._store)
        self._failures = 0
        self._failed_at_end = False
