"""One call of a service as an MLflow trace, sent when it is over.

MLflow's tracing sends in the background and drops what could not be sent. Here the queue on disk does the sending, so a
trace is built as a whole and given to the store directly.
"""

from __future__ import annotations

import json
from typing import Any

from lorahydra.tracking.compat import store_trace
from lorahydra.tracking.operations import Operation, encode

__all__ = ["send_trace"]

NANOSECONDS = 1_000_000
PREVIEW = 1000
"""Characters that MLflow keeps of the first and last message for its table of traces."""


def send_trace(uri: str, experiment_id: str, run_id: str, operation: Operation) -> None:
    """Store one trace; storing the same again changes nothing."""
    store_trace(uri, experiment_id, [_span(operation)], _info(experiment_id, run_id, operation))


def _info(experiment_id: str, run_id: str, operation: Operation) -> Any:
    from mlflow.entities import TraceInfo, TraceLocation, TraceState

    return TraceInfo(
        trace_id=f"tr-{operation['id']}",
        trace_location=TraceLocation.from_experiment_id(experiment_id),
        request_time=operation["start_ns"] // NANOSECONDS,
        execution_duration=(operation["end_ns"] - operation["start_ns"]) // NANOSECONDS,
        state=TraceState.OK if operation["ok"] else TraceState.ERROR,
        request_preview=json.dumps(operation["inputs"], ensure_ascii=False)[:PREVIEW],
        response_preview=json.dumps(operation["outputs"], ensure_ascii=False)[:PREVIEW],
        trace_metadata={"mlflow.sourceRun": run_id, "mlflow.trace_schema.version": "3"},
        tags={"mlflow.traceName": operation["name"]},
    )


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
