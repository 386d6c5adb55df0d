"""The HTTP API, `/api/v1`: each route calls one method of the service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse, PlainTextResponse, StreamingResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from lorahydra import __version__
from lorahydra.errors import LorahydraError, OutputError
from lorahydra.service.archive import zipped
from lorahydra.service.bodies import (
    EstimateBody,
    FineTuneBody,
    IdempotencyKey,
    Limit,
    Lines,
    Number,
    Offset,
    ProjectBody,
    ProjectFilter,
    Refusal,
    TextEncoding,
)
from lorahydra.service.errors import ServiceRefusal
from lorahydra.service.guard import API
from lorahydra.service.receiving import FileReceiver
from lorahydra.service.results import log_tail
from lorahydra.service.rows import PAGE
from lorahydra.service.service import Service
from lorahydra.service.uploads import LONGEST_ENCODING
from lorahydra.service.views import (
    ENDED,
    DatasetView,
    Estimate,
    Examples,
    JobView,
    JudgeView,
    LeaderboardRow,
    LogTail,
    ModelView,
    Page,
    ProjectView,
)

__all__ = ["router"]

EVENT_SECONDS = 1.0
CHECKS_AT_ONCE = 2
ENCODING_FIELD = {
    "type": "string",
    "maxLength": LONGEST_ENCODING,
    "description": "The same as the query parameter `encoding`, which takes precedence.",
}
UPLOAD_SCHEMA = {
    "type": "object",
    "required": ["file"],
    "properties": {"file": {"type": "string", "format": "binary"}, "encoding": ENCODING_FIELD},
}
UPLOAD_FORM = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": UPLOAD_SCHEMA}}}}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The answers other than success, for OpenAPI."""
    return {status: {"model": Refusal} for status in statuses}


def json_refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The same for routes whose success is not JSON."""
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Refusal"}}}
    return {status: {"description": "Refused", "content": content} for status in (*ALWAYS, *statuses)}


ALWAYS = (400, 401, 403, 413, 422, 500, 503)

router = APIRouter(prefix=API, responses=refusals(*ALWAYS))


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


Served = Annotated[Service, Depends(_service)]


@router.post("/projects", status_code=201, responses=refusals(415))
def create_project(body: ProjectBody, service: Served) -> ProjectView:
    """Create a project."""
    return service.projects.create(body.name)


@router.get("/projects")
def list_projects(service: Served, limit: Limit = PAGE, offset: Offset = 0) -> Page[ProjectView]:
    """Projects, newest first."""
    return service.projects.page(limit, offset)


@router.get("/projects/{project_id:int}", responses=refusals(404))
def get_project(project_id: Number, service: Served) -> ProjectView:
    """One project."""
    return service.projects.get(project_id)


@router.post(
    "/projects/{project_id:int}/datasets", status_code=201, responses=refusals(404, 415), openapi_extra=UPLOAD_FORM
)
async def add_dataset(
    project_id: Number, request: Request, service: Served, encoding: TextEncoding = None
) -> DatasetView:
    """Upload a dataset (JSONL, JSON, CSV, TSV or Parquet), which is checked as `lorahydra data check` does."""
    await run_in_threadpool(service.projects.get, project_id)
    with ExitStack() as stack:
        receiver = FileReceiver(
            request.headers.get("content-type", ""),
            lambda name: stack.enter_context(service.datasets.upload(project_id, name)),
        )
        try:
            async for chunk in request.stream():
                await run_in_threadpool(receiver.feed, chunk)
        except ClientDisconnect:
            raise ServiceRefusal("the upload was broken off", "bad_form") from None
        upload, form_encoding = receiver.end()
        return await anyio.to_thread.run_sync(
            service.datasets.keep, project_id, upload, encoding or form_encoding, limiter=request.app.state.checks
        )


@router.get("/projects/{project_id:int}/datasets", responses=refusals(404))
def list_datasets(project_id: Number, service: Served, limit: Limit = PAGE, offset: Offset = 0) -> Page[DatasetView]:
    """Datasets of a project, newest first, without their reports."""
    return service.datasets.page(project_id, limit, offset)


@router.get("/datasets/{dataset_id:int}", responses=refusals(404))
def get_dataset(dataset_id: Number, service: Served) -> DatasetView:
    """One dataset with its report."""
    return service.datasets.get(dataset_id)


@router.post("/fine-tunes", status_code=202, responses=refusals(404, 409, 415, 429))
def start_fine_tune(body: FineTuneBody, service: Served, key: IdempotencyKey = None) -> JobView:
    """Put a fine-tune into the queue."""
    params = body.fine_tuning_params.as_view()
    return service.jobs.start(body.project_id, params, body.dataset_id, body.name, key)


@router.post("/fine-tunes/estimate", responses=refusals(404, 409, 415))
def estimate_fine_tune(body: EstimateBody, service: Served) -> Estimate:
    """Roughly what a fine-tune will take; nothing is started."""
    return service.jobs.estimate(body.project_id, body.fine_tuning_params.as_view(), body.dataset_id)


@router.get("/fine-tunes", responses=refusals(404))
def list_fine_tunes(
    service: Served, project_id: ProjectFilter = None, limit: Limit = PAGE, offset: Offset = 0
) -> Page[JobView]:
    """Fine-tunes, newest first."""
    return service.jobs.page(project_id, limit, offset)


@router.get("/fine-tunes/{job_id:int}", responses=refusals(404))
def get_fine_tune(job_id: Number, service: Served) -> JobView:
    """One fine-tune."""
    return service.jobs.get(job_id)


@router.post("/fine-tunes/{job_id:int}/cancel", status_code=202, responses=refusals(404, 415))
def cancel_fine_tune(job_id: Number, service: Served) -> JobView:
    """Take a fine-tune out of the queue, or end it as Ctrl-C does; one that has ended stays as it is."""
    return service.jobs.cancel(job_id)


@router.post("/fine-tunes/{job_id:int}/resume", status_code=202, responses=refusals(404, 409, 415, 429))
def resume_fine_tune(job_id: Number, service: Served) -> JobView:
    """Queue a cancelled or failed fine-tune again, to continue its study."""
    return service.jobs.resume(job_id)


@router.get("/fine-tunes/{job_id:int}/leaderboard", responses=refusals(404))
def get_leaderboard(job_id: Number, service: Served) -> list[LeaderboardRow]:
    """The trials of a fine-tune, best first."""
    return service.stores.leaderboard(service.jobs.get(job_id))


@router.get("/fine-tunes/{job_id:int}/log", responses=refusals(404))
def get_log(job_id: Number, service: Served, lines: Lines = 200) -> LogTail:
    """The end of a fine-tune's log."""
    return log_tail(Path(service.jobs.get(job_id).folder), lines)


@router.get("/fine-tunes/{job_id:int}/examples", responses=refusals(404))
def get_examples(job_id: Number, service: Served, limit: Limit = PAGE, offset: Offset = 0) -> Examples:
    """Predictions of the best trial beside those of the base model, with the judge's reasons."""
    return service.stores.examples(service.jobs.get(job_id), limit, offset)


class _Zip(StreamingResponse):
    media_type = "application/zip"


@router.get("/fine-tunes/{job_id:int}/adapter", responses=json_refusals(404, 409), response_class=_Zip)
def get_adapter(job_id: Number, service: Served) -> StreamingResponse:
    """The best adapter as a ZIP archive, in PEFT's format."""
    job = service.jobs.get(job_id)
    headers = {"Content-Disposition": f'attachment; filename="{job.study}.zip"'}
    return _Zip(zipped(service.stores.adapter(job), job.study), headers=headers)


@router.get(
    "/fine-tunes/{job_id:int}/events",
    responses=json_refusals(404),
    response_class=EventSourceResponse,
    dependencies=[Depends(get_fine_tune)],
)
async def get_events(job_id: Number, service: Served) -> AsyncIterator[ServerSentEvent]:
    """Server-sent events, `state` and `progress`, each with the fine-tune; they end when it does."""
    before: JobView | None = None
    while not service.closing.is_set():
        try:
            job = await run_in_threadpool(service.jobs.get, job_id)
        except LorahydraError as error:
            yield ServerSentEvent(event="error", data={"detail": str(error)})
            return
        if before is None or job.state != before.state:
            yield ServerSentEvent(event="state", data=job)
        elif _progress(job) != _progress(before):
            yield ServerSentEvent(event="progress", data=job)
        if job.state in ENDED:
            return
        before = job
        await anyio.sleep(EVENT_SECONDS)


def _progress(job: JobView) -> tuple[Any, ...]:
    return job.trials_finished, job.trial_current, job.best_score, job.place, job.resumptions


@router.get("/judges")
def list_judges(service: Served) -> list[JudgeView]:
    """The judges, and what each of them lacks on this server."""
    return service.choices.judges()


@router.get("/models")
def list_models(service: Served) -> list[ModelView]:
    """Base models that can be named; so can any other hub id."""
    return service.choices.models()


@router.get("/health")
def get_health(service: Served) -> dict[str, str]:
    """Whether the server and its database answer, and fine-tunes can be started; needs no token."""
    service.jobs.counts()
    if service.supervisor.fault is not None:
        raise OutputError(service.supervisor.fault)
    return {"status": "ok", "version": __version__}


@router.get("/metrics", responses=json_refusals(), response_class=PlainTextResponse)
def get_metrics(request: Request, service: Served) -> str:
    """Numbers for Prometheus."""
    # To fill Prometheus' own library with these numbers takes as many lines as to write them.
    counts = service.jobs.counts()
    trials = counts.pop("trials")
    answered = sorted(request.app.state.answered().items())
    groups = [
        ("lorahydra_jobs", "gauge", "Fine-tunes by state.", [(f'{{state="{s}"}}', n) for s, n in counts.items()]),
        ("lorahydra_trials_total", "counter", "Finished trials of all fine-tunes.", [("", trials)]),
        ("lorahydra_uptime_seconds", "gauge", "Since the server began.", [("", request.app.state.uptime())]),
        ("lorahydra_requests_total", "counter", "Answers by status.", [(f'{{status="{s}"}}', n) for s, n in answered]),
    ]
    lines = []
    for name, kind, text, values in groups:
        lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
        lines += [f"{name}{labels} {value}" for labels, value in values]
    return "\n".join(lines) + "\n"


@router.get("/docs", response_class=HTMLResponse, include_in_schema=False)
def get_docs(request: Request) -> str:
    """The routes as a plain page that loads nothing from anywhere."""
    rows = "".join(
        f"<tr><td>{method.upper()}</td><td><code>{path}</code></td><td>{operation.get('description', '')}</td></tr>"
        for path, operations in request.app.openapi()["paths"].items()
        for method, operation in operations.items()
    )
    return (
        f'<!doctype html><html lang="en"><title>lorahydra API</title><h1>lorahydra API</h1>'
        f'<p>The whole description: <a href="{API}/openapi.json">openapi.json</a></p><table>{rows}</table></html>'
    )
