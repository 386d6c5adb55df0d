"""From operations of the queue to calls of MLflow: in order, batched, and harmless when done twice.

Sending a batch again after its answer was lost changes nothing: MLflow drops metric points that it has (same
name, step, time and value), takes equal params again, and overwrites tags and artifacts with themselves.
"""

from __future__ import annotations

import json
import logging
import posixpath
from collections.abc import Iterator, Sequence
from typing import Any

from lorahydra.tracking.compat import store_trace
from lorahydra.tracking.faults import describe, is_refusal, is_unknown_to_the_store
from lorahydra.tracking.operations import CONTEXT_TAG, PREVIEW_LENGTH, Operation, encode
from lorahydra.tracking.spool import Entry, Spool

__all__ = ["Delivery", "send_trace"]

logger = logging.getLogger(__name__)

VALUES = ("metrics", "params", "tags")
LIMITS = {"metrics": 800, "params": 100, "tags": 100}
"""Most values of each kind in one call; MLflow takes 1000 in all."""
BYTES = 500_000
"""Most bytes of the queue in one call; requests must stay below 1 MB."""
NANOSECONDS = 1_000_000
"""Nanoseconds in a millisecond."""


class Delivery:
    """Sends what a spool holds to one run, through an `mlflow.MlflowClient`.

    Its methods raise whatever MLflow raises when the store cannot be reached.
    """

    def __init__(self, client: Any, run_id: str, spool: Spool) -> None:
        self._client = client
        self.run_id = run_id
        self._spool = spool
        self._experiment_id: str | None = None
        self._traces = True
        """Whether the store knows them."""

    def step(self) -> int:
        """Send the next batch of the spool and remember that it was sent.

        An item that the store will never take is left out with a warning, so that it cannot hold up others.

        Returns:
            Number of operations that were sent or left out; 0 when none waits.
        """
        entries = self._spool.entries()
        if not entries:
            return 0
        batch = _first_batch(entries)
        try:
            self._send([entry.operation for entry in batch])
        except Exception as error:
            if not is_refusal(error):
                raise
            for entry in batch:
                self.send_or_leave_out(entry.operation)
        self._spool.advance(batch[-1].end)
        self._spool.forget(entry.operation for entry in batch)
        return len(batch)

    def send_or_leave_out(self, operation: Operation) -> None:
        """Send one operation, or warn that the store does not take it."""
        try:
            self._send([operation])
        except Exception as error:
            if not is_refusal(error):
                raise
            what = ", ".join(operation.get("values", ())) or operation.get("name", "")
            logger.warning("MLflow refuses %s %.200s: %s", operation["op"], what, describe(error))

    def _send(self, operations: Sequence[Operation]) -> None:
        kind = operations[0]["op"]
        if kind in VALUES:
            self._send_values(operations)
        elif kind == "artifact":
            self._send_artifact(operations[0])
        elif kind == "dataset":
            self._send_dataset(operations[0])
        elif kind == "trace":
            self._send_trace(operations[0])
        elif kind == "finish":
            self._client.set_terminated(self.run_id, operations[0]["status"], operations[0]["time"])
        # `leave`, and lines that a faulty disk has damaged, have nothing to send.

    def _send_values(self, operations: Sequence[Operation]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        metrics: list[Any] = []
        params: dict[str, str] = {}
        tags: dict[str, str] = {}
        for operation in operations:
            values = operation["values"]
            if operation["op"] == "metrics":
                stamp, step = operation["time"], operation["step"]
                metrics += [Metric(name, value, stamp, step) for name, value in values.items()]
            else:
                (params if operation["op"] == "params" else tags).update(values)
        self._client.log_batch(
            self.run_id,
            metrics=metrics,
            params=[Param(*item) for item in params.items()],
            tags=[RunTag(*item) for item in tags.items()],
        )

    def _send_trace(self, operation: Operation) -> None:
        if self._experiment_id is None:
            self._experiment_id = self._client.get_run(self.run_id).info.experiment_id
        if not self._traces:
            return
        try:
            send_trace(self._client.tracking_uri, self._experiment_id, self.run_id, operation)
        except Exception as error:
            if not is_unknown_to_the_store(error):
                raise
            self._traces = False
            logger.warning("MLflow on this server is too old for these traces: they are left out")

    def _send_artifact(self, operation: Operation) -> None:
        path, name = self._spool.path_of(operation), operation["name"]
        if not path.exists():
            logger.warning("Artifact %s was left out: %s does not exist any more", name, path)
        elif path.is_dir():
            self._client.log_artifacts(self.run_id, str(path), name)
        else:
            self._client.log_artifact(self.run_id, str(path), posixpath.dirname(name) or None)

    def _send_dataset(self, operation: Operation) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        kind, source = _source(operation["source"])
        dataset = Dataset(
            name=operation["name"],
            digest=operation["digest"],
            source_type=kind,
            source=json.dumps(source),
            profile=json.dumps({"num_rows": operation["rows"]}),
        )
        context = InputTag(CONTEXT_TAG, operation["context"])
        self._client.log_inputs(self.run_id, datasets=[DatasetInput(dataset, [context])])


def _first_batch(entries: Sequence[Entry]) -> Sequence[Entry]:
    """The longest start of `entries` that fits one call: many values, or one of anything else."""
    room = dict(LIMITS)
    size = 0
    for index, entry in enumerate(entries):
        kind = entry.operation["op"]
        if kind not in VALUES:
            return entries[: max(index, 1)]
        room[kind] -= len(entry.operation["values"])
        size += entry.end - entries[index - 1].end if index else 0
        if index and (room[kind] < 0 or size > BYTES):
            return entries[:index]
    return entries


def _source(source: str) -> tuple[str, dict[str, str]]:
    """MLflow's type of a dataset's source and its content."""
    if source.startswith(("http://", "https://")):
        return "http", {"url": source}
    if source.startswith("hub:"):
        return "hugging_face", {"path": source.removeprefix("hub:")}
    return "local", {"uri": source}


def send_trace(uri: str, experiment_id: str, run_id: str, operation: Operation) -> None:
    """Store one trace as a whole; MLflow's tracing would send it in the background, and drop it if that fails."""
    store_trace(uri, experiment_id, [_span(operation)], _trace_info(experiment_id, run_id, operation))


def _trace_info(experiment_id: str, run_id: str, operation: Operation) -> Any:
    from mlflow.entities import TraceInfo, TraceLocation, TraceState

    # The queue of an older version has no previews.
    as_json = [json.dumps(operation[name], ensure_ascii=False) for name in ("inputs", "outputs")]
    request, response = operation.get("previews", as_json)
    return TraceInfo(
        trace_id=f"tr-{operation['id']}",
        trace_location=TraceLocation.from_experiment_id(experiment_id),
        request_time=operation["start_ns"] // NANOSECONDS,
        execution_duration=(operation["end_ns"] - operation["start_ns"]) // NANOSECONDS,
        state=TraceState.OK if operation["ok"] else TraceState.ERROR,
        request_preview=request[:PREVIEW_LENGTH],
        response_preview=response[:PREVIEW_LENGTH],
        trace_metadata={"mlflow.sourceRun": run_id, "mlflow.trace_schema.version": "3"},
        tags={"mlflow.traceName": operation["name"]},
        assessments=list(_assessments(operation)),
    )


def _assessments(operation: Operation) -> Iterator[Any]:
    """The scores of a verdict, as MLflow shows and filters them; their ids make sending them twice harmless."""
    from mlflow.entities import AssessmentSource, Feedback

    given = operation.get("assessments") or {"scores": {}}
    ended = operation["end_ns"] // NANOSECONDS
    for number, (name, score) in enumerate(given["scores"].items()):
        feedback = Feedback(
            name=name,
            value=score,
            source=AssessmentSource("LLM_JUDGE", given["judge"]),
            trace_id=f"tr-{operation['id']}",
            rationale=given["rationale"] if number == 0 else None,
            span_id=operation["id"][:16],
            create_time_ms=ended,
            last_update_time_ms=ended,
        )
        feedback.assessment_id = f"a-{operation['id'][:24]}{number:08x}"
        yield feedback


def _span(operation: Operation) -> Any:
    from mlflow.entities import Span

    trace_id = f"tr-{operation['id']}"
    attributes = {
        "mlflow.traceRequestId": trace_id,
        "mlflow.spanType": "LLM",
        "mlflow.spanInputs": operation["inputs"],
        "mlflow.spanOutputs": operation["outputs"],
        **operation["attributes"],
    }
    code = "STATUS_CODE_OK" if operation["ok"] else "STATUS_CODE_ERROR"
    fault = str(operation["outputs"].get("fault") or "")
    return Span.from_dict(
        {
            "name": operation["name"],
            "trace_id": trace_id,
            "span_id": operation["id"][:16],
            "parent_span_id": None,
            "start_time_unix_nano": operation["start_ns"],
            "end_time_unix_nano": operation["end_ns"],
            "status": {"code": code, "message": fault},
            "attributes": {name: encode(value) for name, value in attributes.items()},
            "events": [],
        }
    )
