"""Which process works on something, and whether it is still running.

A process writes `this_process()` beside what it works on, and others ask `is_alive`. On the machine where it runs the
answer is immediate and certain. A process of another machine or container cannot be seen: only a heartbeat or a lock
can tell.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["at_end_of_input", "cores", "has_its_number", "is_alive", "is_here", "this_process"]


def at_end_of_input(act: Callable[[], object]) -> None:
    """Call something when the standard input ends, as it does when the process that holds its other end is killed."""
    threading.Thread(target=_wait_and, args=(act,), daemon=True).start()


def _wait_and(act: Callable[[], object]) -> None:
    # Not through sys.stdin: a thread that waits there would hold its lock when the interpreter ends.
    while os.read(0, 1):
        pass
    act()


def cores() -> int:
    """CPU cores that this process may use: in a cluster job or a container, fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def this_process() -> dict[str, Any]:
    """What tells this process from all others, as plain JSON."""
    return {**_machine(), "host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}


def is_here(process: Mapping[str, Any]) -> bool:
    """Whether the process can be seen from here: same machine, same boot, same container."""
    return all(process.get(name) == value for name, value in _machine().items())


def is_alive(process: Mapping[str, Any]) -> bool | None:
    """Whether the process still runs; None if it cannot be seen from here. A zombie counts as dead."""
    if not is_here(process):
        return None
    started = _started(int(process.get("pid", 0)))
    return started is not None and started == process.get("started")


def has_its_number(process: Mapping[str, Any]) -> bool:
    """Whether the id of a process, alive or dead, has not been given to another process."""
    return is_here(process) and _started(int(process["pid"])) in (None, process.get("started"))


def _machine() -> dict[str, Any]:
    # Two containers on one machine have the same boot id, and each has a process 1; their namespaces differ.
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return {"boot": boot, "namespace": Path("/proc/self/ns/pid").stat().st_ino}
    except OSError:
        import psutil

        return {"boot": f"{socket.gethostname()} {psutil.boot_time():.0f}", "namespace": 0}


def _started(pid: int) -> float | None:
    """When the process began; None if it does not exist or is a zombie.

    On Linux in clock ticks since boot, which a change of the clock does not touch; else in s since the epoch.
    """
    if Path("/proc/self/stat").exists():
        try:
            # The name of the program, in brackets, may hold anything.
            stat = Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace")
        except OSError:
            return None
        state, *fields = stat.rpartition(")")[2].split()
        return None if state == "Z" else float(fields[18])
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else round(process.create_time(), 2)
    except psutil.Error:
        return None
