"""The calls that a run has recorded as traces, with what people have said about them in MLflow's UI."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lorahydra.config.schema import TrackingConfig
from lorahydra.tracking.store import opened

__all__ = ["TraceFeedback", "read_feedback"]

PAGE = 100
"""Traces in one request."""


@dataclass(frozen=True)
class TraceFeedback:
    """A trace, and people's feedback on it."""

    trace_id: str
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    values: Mapping[str, Any]
    """People's last feedback by name; empty if nobody has given any."""


def read_feedback(config: TrackingConfig, run_id: str) -> list[TraceFeedback]:
    """The traces of a run, the oldest first, with the feedback that people gave.

    Raises:
        TrackingError: The store cannot be reached, or does not have the run.
    """
    with opened(config, run_id) as client:
        experiment = client.get_run(run_id).info.experiment_id
        traces: list[Any] = []
        token = None
        while True:
            page = client.search_traces(locations=[experiment], run_id=run_id, max_results=PAGE, page_token=token)
            traces += page
            token = page.token
            if not token:
                break
    traces.sort(key=lambda trace: trace.info.request_time)
    return [
        TraceFeedback(trace.info.trace_id, *_texts(trace), _values(trace.info.assessments or ())) for trace in traces
    ]


def _values(assessments: Any) -> dict[str, Any]:
    """People's feedback by name; that which somebody has replaced does not count."""
    people = [
        one
        for one in assessments
        if one.feedback is not None and one.source.source_type == "HUMAN" and one.valid is not False
    ]
    return {one.name: one.feedback.value for one in sorted(people, key=lambda one: one.last_update_time_ms or 0)}


def _texts(trace: Any) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """What went into the call and what came out."""
    span = next((span for span in trace.data.spans if span.parent_id is None), None)
    given = [] if span is None else [span.inputs, span.outputs]
    inputs, outputs = (value if isinstance(value, dict) else {} for value in (*given, {}, {})[:2])
    return inputs, outputs
