"""Samples of CPU, memory, disk, network and GPU use, under MLflow's names (`system/…`)."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from lorahydra.tracking.compat import system_monitors

__all__ = ["SystemMetrics"]

logger = logging.getLogger(__name__)

FIRST_SECONDS = 1.0
"""Seconds until the first sample; CPU use is a mean since the previous sample."""
SECONDS = 10.0
"""Seconds between samples, as in MLflow."""


class SystemMetrics:
    """Samples in the background until stopped, and calls `record` with the values and the sample's number, from 0.

    A run gets at least one sample, however short it is.
    """

    def __init__(self, record: Callable[[dict[str, float], int], None]) -> None:
        self._record = record
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lorahydra-system-metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; nothing is recorded after this returns."""
        self._stopping.set()
        self._thread.join(timeout=5.0)

    def _run(self) -> None:
        monitors = _monitors()
        stopped = self._stopping.wait(FIRST_SECONDS)
        count = 0
        while not stopped or count == 0:
            values: dict[str, float] = {}
            for monitor in list(monitors):
                try:
                    monitor.collect_metrics()
                    values |= {f"system/{name}": value for name, value in monitor.aggregate_metrics().items()}
                    monitor.clear_metrics()
                except Exception:
                    # Drivers and containers fail in many ways, which must not disturb a trial.
                    logger.debug("%s stopped working", type(monitor).__name__, exc_info=True)
                    monitors.remove(monitor)
            if values:
                self._record(values, count)
            count += 1
            stopped = stopped or self._stopping.wait(SECONDS)


def _monitors() -> list[Any]:
    monitors = []
    for kind in system_monitors():
        try:
            monitors.append(kind())
        except Exception:
            # There is no such device, driver or package, which is the usual case.
            logger.debug("%s is not available", kind.__name__, exc_info=True)
    return monitors
