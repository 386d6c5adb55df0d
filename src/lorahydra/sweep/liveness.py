"""Which process works on a trial, and whether it still lives.

On the machine where it runs this is known at once and for sure. Of another machine's process only its heartbeat is
seen (Optuna's, in the study's database).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

__all__ = ["is_here", "lives", "this_worker"]


def this_worker() -> dict[str, Any]:
    """What tells this process from all others, as plain JSON."""
    return {**_machine(), "host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}


def is_here(worker: Mapping[str, Any]) -> bool:
    """Whether the process can be seen from here: same machine, same boot, same container."""
    return all(worker.get(name) == value for name, value in _machine().items())


def lives(worker: Mapping[str, Any]) -> bool:
    """Whether the process, one of this machine, is still there; its number may belong to another by now."""
    started = _started(int(worker.get("pid", 0)))
    return started is not None and started == worker.get("started")


def _machine() -> dict[str, Any]:
    # Two containers may have one boot and both a process 1; their namespaces differ.
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return {"boot": boot, "namespace": Path("/proc/self/ns/pid").stat().st_ino}
    except OSError:
        return {"boot": f"{socket.gethostname()} {psutil.boot_time():.0f}", "namespace": 0}


def _started(pid: int) -> float | None:
    """When the process began; None when there is none (a zombie counts as none).

    On Linux in clock ticks since boot, which a change of the clock does not touch; else in s since the epoch.
    """
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            # The name of the program, in brackets, may hold anything.
            state, *fields = stat.read_text("utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            return None
        return None if state == "Z" else float(fields[18])
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else round(process.create_time(), 2)
    except psutil.Error:
        return None
