"""One MLflow run as a trial sees it. Recording never waits for the store and never fails because of it."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lorahydra.config.schema import TrackingConfig
from lorahydra.errors import OutputError, TrialPruned
from lorahydra.names import State
from lorahydra.tracking import operations
from lorahydra.tracking.address import run_url
from lorahydra.tracking.delivery import Delivery
from lorahydra.tracking.mirrors import Mirrors
from lorahydra.tracking.operations import Operation
from lorahydra.tracking.sender import SECONDS_AFTER_INTERRUPT, Sender
from lorahydra.tracking.spool import Header, Spool
from lorahydra.tracking.system import SystemMetrics
from lorahydra.utils.databases import shown
from lorahydra.utils.files import writing

__all__ = ["Before", "TrackedRun"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Before:
    """What a run that goes on had before."""

    state: State
    """Interrupted also if another process is still recording it."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The last value of each."""
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


NOTHING = Before(State.RUNNING)
TABLES_TAG = "mlflow.loggedArtifacts"
"""The artifacts that MLflow's UI shows as tables."""


class TrackedRun:
    """A run that is being recorded; made by `start_run`, used in a `with` block.

    Everything logged is on disk when the call returns, and sent by a background thread. Leaving the block
    without `finish` or `leave` records how it ended: complete, failed (with the exception's class and text) or
    interrupted; a run that was not opened again (`add_to_run`) stays as it had ended.

    All methods may be called from any thread. None fails because of the store.

    Raises:
        OutputError: From the first method that finds the disk full. Later ones stay silent, so that the failure
            itself can be recorded; `finish` says how much is missing.
    """

    run_id: str
    experiment_id: str
    url: str | None
    """Link to the run if the store is a server; else the command that opens MLflow's UI on the store."""
    before: Before
    """What a run that goes on had before; nothing for a new one."""

    def __init__(
        self,
        client: Any,
        spool: Spool,
        header: Header,
        *,
        experiment_id: str,
        config: TrackingConfig,
        before: Before = NOTHING,
        is_open: bool = True,
    ) -> None:
        self.run_id = header.run_id
        self.experiment_id = experiment_id
        self.url = run_url(header.uri, experiment_id, header.run_id)
        self.before = before
        self._pause = header.pause
        self._is_open = is_open
        self._store = shown(header.uri)
        self._patience = config.retry_seconds
        self._spool = spool
        self._sender = Sender(spool, Delivery(client, self.run_id, spool), Mirrors(spool, header), self._store)
        self._params: dict[str, str] = {}
        self._tables = _tables(before.tags.get(TABLES_TAG, ""))
        self._mutex = threading.Lock()
        self._lost = 0
        """Operations that found the disk full."""
        self._samples: list[Operation] | None = []
        """Samples of the system from before the first metric; None after it."""
        self._finished = False
        self._system = SystemMetrics(self._sample) if config.system_metrics else None

    def params(self, values: Mapping[str, object]) -> None:
        """Record parameters; long values are cut, and the first value of a name stays."""
        for operation in operations.params(values):
            fresh = {name: text for name, text in operation["values"].items() if self._is_fresh(name, text)}
            if fresh:
                self._log([operation | {"values": fresh}])

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Record one point of each metric, now.

        NaN is stored as NaN. MLflow's databases have no infinity and store ±1.8e308, the largest float.

        Args:
            values: By name, see `lorahydra.names.Metric`. A value that is not a number is left out with a warning.
            step: Optimiser step; 0 if there is none.
        """
        numbers: dict[str, float] = {}
        for name, value in values.items():
            try:
                numbers[name] = float(value)
            except (TypeError, ValueError):
                logger.warning("Metric %s is not a number and was left out: %.100r", name, value)
        self._log(operations.metrics(numbers, step))
        self._release_samples()

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags; the last value of a name stays."""
        self._log(operations.tags(values))

    def artifact(self, path: Path, name: str) -> None:
        """Record a file or a folder as artifact `name`, a path with `/` between its parts.

        A folder inside the trial's output folder is sent from its place and must not change until then. Anything
        else is copied, so it may change or vanish after the call.
        """
        path = path.absolute()
        home = self._spool.folder.parent.parent
        if path.is_dir() and path.is_relative_to(home):
            self._log([operations.artifact(name, kept=str(path.relative_to(home)))])
        elif path.is_dir():
            self._log_copy(name, lambda target: shutil.copytree(path, target))
        elif path.exists():
            self._log_copy(name, lambda target: shutil.copyfile(path, target))
        else:
            logger.warning("Artifact %s was left out: %s does not exist", name, path)

    def text(self, content: str, name: str) -> None:
        """Record a UTF-8 text as artifact `name`."""
        data = content.encode("utf-8", errors="backslashreplace")
        self._log_copy(name, lambda target: target.write_bytes(data))

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]], name: str) -> None:
        """Record a table that MLflow's UI shows and `mlflow.load_table` reads; its `name` ends in `.json`.

        NaN becomes null, other objects their text.
        """
        data = operations.table(columns, rows)
        self._log_copy(name, lambda target: target.write_bytes(data))
        with self._mutex:
            entry = {"path": name, "type": "table"}
            self._tables += [entry] if entry not in self._tables else []
            listed = operations.encode(self._tables)
        self.tags({TABLES_TAG: listed})

    def dataset(self, name: str, digest: str, source: str, rows: int, context: str) -> None:
        """Record a dataset as an input of the run, with a hash of its content, of which MLflow keeps 36 characters.

        Its source is a path, `http(s)://…`, or `hub:NAME`; its context is `training`, `validation` or `test`.
        """
        self._log([operations.dataset(name, digest, source, rows, context)])

    def finish(self, state: State, failure: str | None = None) -> int:
        """Send everything that waits and close the run in a state other than `RUNNING`; later calls have no effect.

        It waits `config.retry_seconds` for a store that cannot be reached, and 5 seconds after an interrupt.
        `failure` is the class and one line of the error, if the run failed, or why it was pruned.

        Returns:
            How many entries could not be sent; `lorahydra sync` sends them later.
        """
        interrupted = state is State.INTERRUPTED
        patience = min(self._patience, SECONDS_AFTER_INTERRUPT) if interrupted else self._patience
        return self._end(operations.ending(state, failure, operations.now() - self._pause), patience)

    def leave(self) -> int:
        """Like `finish`, but the run stays as it is: open for others that record it, or as it had ended."""
        return self._end([operations.leave()], self._patience)

    def note(self, text: str) -> None:
        """Set what MLflow's UI shows as the run's description: Markdown, cut to 5000 characters."""
        self.tags({operations.NOTE_TAG: text})

    def trace(self, call: Operation) -> None:
        """Record one call of a service, made by `operations.trace`, as an MLflow trace of this run."""
        self._log([call])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._is_open:
            self.leave()
        elif error is None:
            self.finish(State.COMPLETE)
        elif isinstance(error, TrialPruned):
            self.finish(State.PRUNED, str(error) or None)
        elif isinstance(error, Exception):
            self.finish(State.FAILED, f"{type(error).__name__}: {error}")
        else:
            # Ctrl-C, or a SystemExit from a signal handler.
            self.finish(State.INTERRUPTED)

    def _end(self, last: Sequence[Operation], patience: float) -> int:
        """Log the last operations, send everything and close the spool; a second call does nothing."""
        if self._system is not None:
            self._system.stop()  # no sample comes after the end
        self._release_samples()
        with self._mutex:
            if self._finished:
                return 0
            self._finished = True
        homeless = [operation for operation in last if self._append(operation) is not None]
        if self._lost:
            logger.warning("%d entries of run %s were lost: the disk was full", self._lost, self.run_id)
        return self._sender.finish(patience, homeless)

    def _log_copy(self, name: str, write: Callable[[Path], object]) -> None:
        """Record artifact `name` with the content that `write` puts at the path it is given."""
        if self._finished:
            return
        target = None
        try:
            with writing(self._spool.folder):
                target = self._spool.reserve(name)
                write(target)
        except OutputError as error:
            if target is not None:
                shutil.rmtree(target.parent, ignore_errors=True)
            self._lose(error)
            return
        self._log([operations.artifact(name, owned=str(target.relative_to(self._spool.folder)))])

    def _log(self, batch: Iterable[Operation]) -> None:
        for operation in batch:
            with self._mutex:
                error = None if self._finished else self._append(operation)
            if error is not None:
                self._lose(error)

    def _append(self, operation: Operation) -> OutputError | None:
        try:
            self._spool.append(operation)
        except OutputError as error:
            return error
        self._sender.notify()
        return None

    def _is_fresh(self, name: str, text: str) -> bool:
        """Whether param `name` has no value yet: MLflow refuses a whole batch in which one changes."""
        with self._mutex:
            first = self._params.setdefault(name, self.before.params.get(name, text))
        if first is not text and first != text:
            logger.warning("MLflow keeps the first value of param %s and leaves %.100s out", name, text)
        return first is text

    def _sample(self, values: dict[str, float], step: int) -> None:
        """Record a sample of the system; the trial itself reports a full disk.

        MLflow's pages show metrics in the order in which a run got them, and begin comparisons with the first one, so a
        metric of the trial comes first.
        """
        for operation in operations.metrics(values, step):
            with self._mutex:
                if self._samples is not None:
                    self._samples.append(operation)
                elif not self._finished:
                    self._append(operation)

    def _release_samples(self) -> None:
        with self._mutex:
            waiting, self._samples = self._samples or [], None
            for operation in waiting:
                if not self._finished:
                    self._append(operation)

    def _lose(self, error: OutputError) -> None:
        with self._mutex:
            self._lost += 1
            if self._lost == 1:
                raise error


def _tables(tag: str) -> list[dict[str, str]]:
    """The tables that a run has already, from its tag, which somebody may have changed."""
    with contextlib.suppress(ValueError):
        listed = json.loads(tag)
        return [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    return []
