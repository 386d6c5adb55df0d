"""What a run logs, as plain JSON objects that fit MLflow's limits: the lines of the queue on disk.

Each has `op` and `time`, the milliseconds since the epoch when it was logged.

| `op` | other keys |
|---|---|
| `metrics` | `values`, `step` |
| `params`, `tags` | `values` |
| `artifact` | `name`, and `owned` (path inside the spool) or `kept` (path inside the trial's output folder) |
| `dataset` | `name`, `digest`, `source`, `rows`, `context` |
| `trace` | `id`, `name`, `inputs`, `outputs`, `attributes`, `previews`, `assessments`, `ok`, `start_ns`, `end_ns` |
| `finish` | `status` |
| `leave` | nothing: the process has ended, and others go on with the run |
"""

from __future__ import annotations

import hashlib
import json
import math
import posixpath
import re
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from lorahydra.errors import one_line
from lorahydra.names import State, Tag

__all__ = [
    "CONTEXT_TAG",
    "ENDS",
    "NOTE_TAG",
    "STATUS",
    "Assessments",
    "Operation",
    "artifact",
    "dataset",
    "encode",
    "end_tags",
    "ending",
    "finish",
    "leave",
    "metrics",
    "now",
    "params",
    "stored_tags",
    "table",
    "tags",
    "trace",
]

Operation = dict[str, Any]


@dataclass(frozen=True)
class Assessments:
    """What a judge found, for its call's trace."""

    scores: Mapping[str, float]
    """By the name of what was assessed."""
    rationale: str
    judge: str
    """The model that judged."""


ENDS = ("finish", "leave")
"""The last operation of a process that did not die."""
STATUS = {
    State.COMPLETE: "FINISHED",
    State.PRUNED: "KILLED",
    State.FAILED: "FAILED",
    State.INTERRUPTED: "KILLED",
}
"""MLflow's status of a run that ended in a state; MLflow's own storage for Optuna has the same for pruned trials."""
CONTEXT_TAG = "mlflow.data.context"
"""MLflow's tag on a dataset for what it was used for."""
NOTE_TAG = "mlflow.note.content"
"""MLflow's tag for the description of a run or an experiment, in Markdown."""

KEY_LENGTH = 250
PARAM_LENGTH = 6000
TAG_LENGTH = 5000
"""Characters of a tag that MLflow promises for every store."""
DIGEST_LENGTH = 36
PREVIEW_LENGTH = 1000
RATIONALE_LENGTH = 5000
VALUES_PER_OPERATION = 100
"""MLflow takes at most 100 params and 100 tags in one call."""
BYTES_PER_OPERATION = 200_000
"""A line of the queue; several of them share a request, and requests must stay below 1 MB."""


def now() -> int:
    """Milliseconds since the epoch, the time unit of MLflow."""
    return int(time.time() * 1000)


def encode(value: object) -> str:
    """One line of ASCII JSON (`NaN` and `Infinity` as Python reads and writes them)."""
    return json.dumps(value, separators=(",", ":"))


def _operation(kind: str, **content: object) -> Operation:
    return {"op": kind, "time": now(), **content}


def metrics(values: Mapping[str, float], step: int | None) -> Iterator[Operation]:
    """Metric points of one step, all with the present time; NaN and infinities are kept as they are."""
    stamp = now()
    for chunk in _chunks((_key(name), float(value)) for name, value in values.items()):
        yield _operation("metrics", values=chunk, step=int(step or 0), time=stamp)


def params(values: Mapping[str, object]) -> Iterator[Operation]:
    """Parameters, with long values cut to what MLflow takes."""
    for chunk in _chunks((_key(name), _cut(str(value), PARAM_LENGTH)) for name, value in values.items()):
        yield _operation("params", values=chunk)


def tags(values: Mapping[str, str]) -> Iterator[Operation]:
    """Tags, with long values cut to what MLflow takes."""
    for chunk in _chunks(stored_tags(values).items()):
        yield _operation("tags", values=chunk)


def stored_tags(values: Mapping[str, str]) -> dict[str, str]:
    """Tags as the store will have them."""
    return {_key(name): _cut(str(value), TAG_LENGTH) for name, value in values.items()}


def end_tags(state: State, failure: str | None = None) -> dict[str, str]:
    """The tags of a run that has ended, with one line about why it failed or was pruned."""
    tag = Tag.PRUNED if state is State.PRUNED else Tag.FAILURE
    said = {} if failure is None else {tag.value: one_line(failure, TAG_LENGTH)}
    return {Tag.STATE.value: state.value, **said}


def dataset(name: str, digest: str, source: str, rows: int, context: str) -> Operation:
    """A dataset that went into the run."""
    name, context = _cut(name, 500), _cut(context, 500)
    return _operation("dataset", name=name, digest=digest[:DIGEST_LENGTH], source=source, rows=rows, context=context)


def artifact(name: str, *, owned: str | None = None, kept: str | None = None) -> Operation:
    """A file or folder, by its path in the spool (`owned`) or in the trial's output folder (`kept`)."""
    place = {"owned": owned} if owned is not None else {"kept": kept}
    return _operation("artifact", name=posixpath.normpath(name), **place)


def finish(status: str, end_time: int | None = None) -> Operation:
    """The end of the run: `FINISHED`, `FAILED` or `KILLED` at `end_time` (ms; now by default)."""
    return _operation("finish", status=status, time=now() if end_time is None else end_time)


def ending(state: State, failure: str | None = None, end_time: int | None = None) -> list[Operation]:
    """The last operations of a run that ended in a state."""
    return [*tags(end_tags(state, failure)), finish(STATUS[state], end_time)]


def leave() -> Operation:
    """The process logs nothing more to a run that goes on; nothing is sent to the store."""
    return _operation("leave")


def trace(
    name: str,
    inputs: Mapping[str, object],
    outputs: Mapping[str, object],
    attributes: Mapping[str, object],
    *,
    previews: tuple[str, str],
    assessments: Assessments | None,
    ok: bool,
    start_ns: int,
    end_ns: int,
) -> Operation:
    """A call of a service; its id is drawn here, so that sending it twice gives one trace.

    `previews` are the texts for the columns Request and Response of MLflow's table of traces. Start and end are in
    nanoseconds since the epoch; `ok` says whether the call succeeded.
    """
    texts = {"inputs": dict(inputs), "outputs": dict(outputs), "attributes": dict(attributes)}
    # MLflow keeps these outside JSON, where its databases take neither lone surrogates nor null characters.
    shown = [one_line(text, PREVIEW_LENGTH) for text in previews]
    given = None
    if assessments is not None:
        given = asdict(replace(assessments, rationale=one_line(assessments.rationale, RATIONALE_LENGTH)))
    times = {"start_ns": start_ns, "end_ns": end_ns}
    return _operation(
        "trace", id=uuid.uuid4().hex, name=name, **texts, previews=shown, assessments=given, ok=ok, **times
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """A table in the JSON that MLflow's UI and `load_table` read; what JSON does not have becomes null or text."""
    content = {"columns": list(columns), "data": [[_plain(value) for value in row] for row in rows]}
    # A lone surrogate has no UTF-8 form; its backslash escape is valid JSON.
    return json.dumps(content, ensure_ascii=False).encode("utf-8", errors="backslashreplace")


def _plain(value: object) -> str | int | float | None:
    if value is None or isinstance(value, str | int):
        return value
    try:
        number = float(value)  # type: ignore[arg-type]  # NumPy and torch scalars; anything else raises
    except (TypeError, ValueError):
        return str(value)
    return number if math.isfinite(number) else None


def _chunks(items: Iterable[tuple[str, Any]]) -> Iterator[dict[str, Any]]:
    """Split `items` so that each part is one acceptable operation."""
    chunk: dict[str, Any] = {}
    size = 0
    for key, value in items:
        length = len(encode([key, value]))
        if chunk and (len(chunk) == VALUES_PER_OPERATION or size + length > BYTES_PER_OPERATION):
            yield chunk
            chunk, size = {}, 0
        chunk[key] = value
        size += length
    if chunk:
        yield chunk


def _key(name: str) -> str:
    """The name if MLflow accepts it, else the nearest one that it accepts."""
    clean = posixpath.normpath(re.sub(r"[^/\w.\- :]", "_", str(name)).strip("/") or "_")
    if clean.startswith("."):  # ".", "..", "../x": MLflow could take them for folders
        clean = f"_{clean}"
    if len(clean) <= KEY_LENGTH:
        return clean
    digest = hashlib.sha256(clean.encode("utf-8", "replace")).hexdigest()[:8]
    return f"{clean[: KEY_LENGTH - 9]}-{digest}"


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
