"""The process behind `ProgramRunner`: it imports everything once, and a copy of it becomes each program.

`python forking.py MODULE...` reads one JSON request per line. The reply to `{"start": {...}}` is a process number; the
reply to `{"poll": N}` is its exit code (negative: the signal that ended it), or null while it runs.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import json
import logging
import os
import runpy
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SWEEP = (
    *("alembic.command", "alembic.config", "alembic.migration", "alembic.script", "encodings.ascii"),
    *("filelock", "hydra._internal.logging_config", "hydra_plugins.hydra_optuna_sweeper._impl"),
    *("importlib.resources.readers", "optuna.storages._rdb.storage", "sqlalchemy.dialects.sqlite.aiosqlite"),
    *("lorahydra.cli.hydra_app", "lorahydra.sweep.experiment_objective", "lorahydra.sweep.study_sweeper"),
)
"""Modules that every sweep imports."""


def _serve() -> None:
    import importlib
    import importlib.util

    from hydra.core.plugins import Plugins

    del sys.path[0]  # the folder of this file
    for name in (*SWEEP, *sys.argv[1:]):
        importlib.import_module(name)
    if importlib.util.find_spec("cmaes"):
        importlib.import_module("cmaes")
    Plugins.instance()
    _open_a_study()
    if "mlflow.pyfunc" in sys.modules:
        _know_packages()
    gc.freeze()
    running: set[int] = set()
    for line in sys.stdin:
        request = json.loads(line)
        answer: int | None
        if "start" in request:
            answer = os.fork()
            if answer == 0:
                _become(request["start"])
            running.add(answer)
        else:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
            running.discard(pid)
        os.write(1, f"{json.dumps(answer)}\n".encode())
    for pid in running:
        os.kill(pid, signal.SIGKILL)


def _open_a_study() -> None:
    """Make SQLAlchemy configure Optuna's tables, which takes place once per process."""
    import optuna

    optuna.logging.disable_default_handler()
    storage = optuna.storages.RDBStorage("sqlite://")
    optuna.create_study(storage=storage).ask()
    storage.engine.dispose()
    optuna.logging.enable_default_handler()


def _know_packages() -> None:
    """Read which packages are installed, which each trial and each study would do again, a second each time."""
    from mlflow.utils.requirements_utils import warn_dependency_requirement_mismatches

    from lorahydra.utils.environment import environment

    environment("cpu")
    warn_dependency_requirement_mismatches(["mlflow"])


def _become(request: Mapping[str, Any]) -> None:
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _redirect(request)
        os.environ.clear()
        os.environ.update(request["env"])
        os.chdir(request["cwd"])
        if request["hidden"]:
            _hide(request["hidden"])
        _write_fast()
        if request["die_at_write"] is not None:
            _die_at_write(request["die_at_write"])
        if request["pause_at"] is not None:
            _pause_at(request["pause_at"])
        _run(*request["argv"])
        code = 0
    except SystemExit as end:
        if end.code is not None and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)  # noqa: T201
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        traceback.print_exc()
    # As at the end of a program: threads are waited for, and what libraries left behind is removed.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _redirect(request: Mapping[str, Any]) -> None:
    writing = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    files = ((request["input"], os.O_RDONLY), (request["output"], writing), (request["errors"], writing))
    for number, (file, how) in enumerate(files):
        opened = os.open(file, how | os.O_NOCTTY)
        os.dup2(opened, number)
        os.close(opened)
    if os.isatty(1):
        # As Python does for a terminal.
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def _hide(folder: str) -> None:
    """Mount an empty folder in place of a folder, for this process alone."""
    new_namespace = 0x20000
    if ctypes.CDLL(None).unshare(new_namespace) == 0:
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "none", folder], check=True)


def _run(first: str, *rest: str) -> None:
    """Do the same as `python FIRST REST...`."""
    if first == "-m":
        sys.argv = list(rest)
        sys.path.insert(0, str(Path.cwd()))
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv = ["-c", *rest[1:]]
        sys.path.insert(0, "")
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = [first, *rest]
        sys.path.insert(0, str(Path(first).parent))
        runpy.run_path(first, run_name="__main__")


def _write_fast() -> None:
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    @event.listens_for(Engine, "connect")
    def connected(connection: Any, _: Any) -> None:
        # What a killed process wrote is kept by the system; only a power failure would lose it.
        if type(connection).__module__.startswith("sqlite3"):
            connection.execute("PRAGMA synchronous=OFF")


def _pause_at(text: str) -> None:
    """Stop this process where a test wants to find it, however slow or quick it is."""
    make = logging.getLogRecordFactory()
    paused = False

    def pause() -> None:
        nonlocal paused
        if not paused:
            paused = True
            os.kill(os.getpid(), signal.SIGSTOP)

    def made(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        if record.getMessage().startswith(text):
            pause()
        return record

    def done(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "os.rename" and str(arguments[1]).endswith(text):
            pause()

    logging.setLogRecordFactory(made)
    sys.addaudithook(done)


def _die_at_write(last: int) -> None:
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    writes = 0

    def written(*_: Any) -> None:
        nonlocal writes
        # Heartbeats come when they come, so they are not counted.
        if threading.current_thread() is threading.main_thread():
            writes += 1
            if writes == last:
                os.kill(os.getpid(), signal.SIGKILL)

    atexit.register(lambda: print(f"{writes} writes"))  # noqa: T201

    @event.listens_for(Engine, "before_cursor_execute")
    def executed(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if not statement.lstrip().upper().startswith(("SELECT", "PRAGMA", "SHOW")):
            written()

    event.listen(Engine, "commit", written)


if __name__ == "__main__":
    _serve()
