"""Runs Hydra programs in processes forked from one that has imported everything: some 0.3 s each, not 5 s.

`python nursery.py` takes one JSON request a line: `{"start": {...}}` answers a process number, `{"wait": N}` its exit
code (negative: the signal that ended it).
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class Nursery:
    """The process that forks; use from one thread at a time.

    Args:
        modules: What to import before the first fork, beside what every sweep imports.
    """

    def __init__(self, modules: Sequence[str] = ()) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__, *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def start(
        self,
        app: Path,
        *overrides: str,
        output: Path | None = None,
        env: Mapping[str, str] | None = None,
        die_at_write: int | None = None,
    ) -> int:
        """Start `app` in its own folder.

        With `die_at_write` it is killed in front of that write to its database; where it lives to its end it prints
        the number of its writes.
        """
        request = {
            "argv": [str(app), *overrides],
            "cwd": str(app.parent),
            "output": str(output or app.with_name("output.txt")),
            "errors": None,
            "env": {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
            "die_at_write": die_at_write,
        }
        return int(self._ask({"start": request}))

    def call(self, command: Sequence[str], cwd: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        """As `subprocess.run` of Python with `command`: a program, or `-m` and a module, and their arguments.

        What libraries read from the environment while they are imported is the nursery's.
        """
        with tempfile.TemporaryDirectory() as folder:
            output, errors = Path(folder, "output"), Path(folder, "errors")
            request = {
                "argv": list(command),
                "cwd": str(cwd),
                "output": str(output),
                "errors": str(errors),
                "env": dict(env),
                "die_at_write": None,
            }
            code = self.wait(int(self._ask({"start": request})))
            return subprocess.CompletedProcess(command, code, output.read_text("utf-8"), errors.read_text("utf-8"))

    def wait(self, pid: int) -> int:
        """Exit code."""
        return int(self._ask({"wait": pid}))

    def run(self, app: Path, *overrides: str, **options: Any) -> int:
        """Start and wait."""
        return self.wait(self.start(app, *overrides, **options))

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def _ask(self, request: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def _serve() -> None:
    import importlib
    import importlib.util

    import alembic.command
    import alembic.config
    import alembic.migration
    import alembic.script  # noqa: F401
    from hydra.core.plugins import Plugins
    from hydra_plugins.hydra_optuna_sweeper import _impl  # noqa: F401
    from optuna.storages._rdb import models, storage  # noqa: F401

    import lorahydra.sweep.experiment_host
    import lorahydra.sweep.sweeper  # noqa: F401

    if importlib.util.find_spec("cmaes"):
        import cmaes  # noqa: F401
    for name in sys.argv[1:]:
        importlib.import_module(name)
    Plugins.instance()
    gc.freeze()
    for line in sys.stdin:
        request = json.loads(line)
        if "start" in request:
            pid = os.fork()
            if pid == 0:
                _become(request["start"])
            answer = pid
        else:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        os.write(1, f"{answer}\n".encode())


def _become(request: Mapping[str, Any]) -> None:
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        errors = os.open(request["errors"] or request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for here, there in ((nothing, 0), (output, 1), (errors, 2)):
            os.dup2(here, there)
        os.environ.clear()
        os.environ.update(request["env"])
        os.chdir(request["cwd"])
        module = request["argv"][0] == "-m"
        sys.argv = list(request["argv"][1:] if module else request["argv"])
        sys.path.insert(0, request["cwd"] if module else str(Path(sys.argv[0]).parent))
        _write_fast()
        if request["die_at_write"] is not None:
            _die_at_write(request["die_at_write"])
        if module:
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as end:
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


def _write_fast() -> None:
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    @event.listens_for(Engine, "connect")
    def connected(connection: Any, _: Any) -> None:
        # What a killed process wrote is kept by the system; only a power failure would lose it.
        if type(connection).__module__.startswith("sqlite3"):
            connection.execute("PRAGMA synchronous=OFF")


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
