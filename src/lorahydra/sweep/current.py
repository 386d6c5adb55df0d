"""The trial that a sweep is running in this process, for the function that Hydra calls; imports no Optuna.

A function of one's own under `hydra/sweeper=lorahydra` may use it to be pruned:

```python
trial = current_trial()
if trial is not None:
    trial.measured(loss)  # raises TrialPruned where going on is not worth it
```
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lorahydra.sweep.running_trial import RunningTrial

__all__ = [
    "WORKER",
    "current_trial",
    "kept_study",
    "own_arguments",
    "remember_command",
    "remember_study",
    "running_as",
    "watch_parent",
]

WORKER = "LORAHYDRA_WORKER"
"""Environment variable that is set in the worker processes of a study, to their number."""

_current: RunningTrial | None = None
_kept: str | None = None
_arguments: list[str] | None = None


def current_trial() -> RunningTrial | None:
    """The trial; None outside of a sweep."""
    return _current


@contextmanager
def running_as(trial: RunningTrial) -> Iterator[None]:
    """Make `trial` the current one."""
    global _current
    before, _current = _current, trial
    try:
        yield
    finally:
        _current = before


def remember_study(command: str | None) -> None:
    """Keep what continues the study that runs now; None when it has ended."""
    global _kept
    _kept = command


def kept_study() -> str | None:
    """The command that continues the study of this process, when it is interrupted."""
    return _kept


def remember_command(arguments: list[str]) -> None:
    """Keep the arguments of the program, which is nothing but one experiment."""
    global _arguments
    _arguments = arguments


def own_arguments() -> list[str] | None:
    """The arguments of the program, where it is nothing but one experiment."""
    return _arguments


def watch_parent() -> None:
    """In a worker process of a study: stop as by Ctrl-C when the process that started it is gone."""
    if os.environ.get(WORKER) and not sys.stdin.isatty():
        threading.Thread(target=_stop_at_end_of_input, daemon=True).start()


def _stop_at_end_of_input() -> None:
    # Not through sys.stdin, whose lock a thread that waits would hold at the interpreter's end.
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGINT)
