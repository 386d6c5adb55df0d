"""The HTTP API, `/api/v1`: each route calls one method of the service."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import anyio
from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi import Path as InPath
from fastapi.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from lorahydra import __version__
from lorahydra.errors import LorahydraError, OutputError
from lorahydra.service import views
from lorahydra.service.addresses import API
from lorahydra.service.archive import zipped
from lorahydra.service.bodies import LARGEST, EditBody, EstimateBody, FineTuneBody, ProjectBody, Refusal
from lorahydra.service.errors import ServiceRefusal
from lorahydra.service.reasons import coded
from lorahydra.service.results import LONGEST_LOG, log_tail
from lorahydra.service.rows import MOST, PAGE
from lorahydra.service.service import Service
from lorahydra.service.uploads import LONGEST_COLUMNS, LONGEST_ENCODING, Reading, Upload, read_columns

__all__ = [
    "ALWAYS",
    "Number",
    "Offset",
    "ProjectFilter",
    "Served",
    "checked",
    "receive",
    "refusals",
    "router",
]

Kept = TypeVar("Kept")

EVENT_SECONDS = 1.0
CHECKS_AT_ONCE = 2
ENCODING_FIELD = {
    "type": "string",
    "maxLength": LONGEST_ENCODING,
    "description": "The same as the query parameter `encoding`, which takes precedence.",
}
COLUMNS_FIELD = {
    "type": "string",
    "maxLength": LONGEST_COLUMNS,
    "description": "The same as the query parameter `columns`, which takes precedence.",
}
UPLOAD_SCHEMA = {
    "type": "object",
    "required": ["file"],
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "encoding": ENCODING_FIELD,
        "columns": COLUMNS_FIELD,
    },
}
UPLOAD_FORM = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": UPLOAD_SCHEMA}}}}

Number = Annotated[int, InPath(ge=1, le=LARGEST)]
Limit = Annotated[int, Query(ge=1, le=MOST, description="Entries at a time.")]
Offset = Annotated[int, Query(ge=0, le=LARGEST, description="Entries to skip.")]
Lines = Annotated[int, Query(ge=1, le=LONGEST_LOG, description="Lines from the end.")]
ProjectFilter = Annotated[int | None, Query(ge=1, le=LARGEST, description="Only the fine-tunes of this project.")]
TextEncoding = Annotated[
    str | None,
    Query(
        max_length=LONGEST_ENCODING,
        pattern=r"^[A-Za-z0-9_.-]+$",
        description="Character encoding of a text file that is not UTF-8.",
    ),
]
ColumnNames = Annotated[
    str | None,
    Query(
        max_length=LONGEST_COLUMNS,
        description="Columns under other names, for example `question=Frage,answer=Antwort`.",
    ),
]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[!-~]+$",
        description="The same key with the same body returns the same fine-tune.",
    ),
]


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
def create_project(body: ProjectBody, service: Served) -> views.ProjectView:
    """Create a project."""
    return service.projects.create(body.name)


@router.get("/projects")
def list_projects(service: Served, limit: Limit = PAGE, offset: Offset = 0) -> views.Page[views.ProjectView]:
    """Projects, newest first."""
    return service.projects.page(limit, offset)


@router.get("/projects/{project_id:int}", responses=refusals(404))
def get_project(project_id: Number, service: Served) -> views.ProjectView:
    """One project."""
    return service.projects.get(project_id)


@router.post(
    "/projects/{project_id:int}/datasets", status_code=201, responses=refusals(404, 415), openapi_extra=UPLOAD_FORM
)
async def add_dataset(
    project_id: Number,
    request: Request,
    service: Served,
    encoding: TextEncoding = None,
    columns: ColumnNames = None,
) -> views.DatasetView:
    """Upload a dataset (JSONL, JSON, CSV, TSV or Parquet), which is checked as `lorahydra data check` does."""
    await run_in_threadpool(service.projects.get, project_id)
    with service.datasets.upload(request.headers.get("content-type", "")) as upload:
        await receive(request, upload)
        asked = Reading(encoding, read_columns(columns))
        return _coded(await checked(request, service.datasets.keep, project_id, upload, asked))


def _coded(dataset: views.DatasetView) -> views.DatasetView:
    return dataclasses.replace(dataset, report=coded(dataset.report))


async def receive(request: Request, upload: Upload) -> None:
    """Take all of an upload's request."""
    try:
        async for chunk in request.stream():
            await run_in_threadpool(upload.feed, chunk)
    except ClientDisconnect:
        raise ServiceRefusal("the upload was broken off", "bad_form") from None


async def checked(request: Request, keep: Callable[..., Kept], *arguments: Any) -> Kept:
    """Call a function that checks a file, beside few others."""
    return await anyio.to_thread.run_sync(keep, *arguments, limiter=request.app.state.checks)


@router.get("/projects/{project_id:int}/datasets", responses=refusals(404))
def list_datasets(
    project_id: Number, service: Served, limit: Limit = PAGE, offset: Offset = 0
) -> views.Page[views.DatasetView]:
    """Datasets of a project, newest first, without their reports."""
    return service.datasets.page(project_id, limit, offset)


@router.get("/datasets/{dataset_id:int}", responses=refusals(404))
def get_dataset(dataset_id: Number, service: Served) -> views.DatasetView:
    """One dataset with its report."""
    return _coded(service.datasets.get(dataset_id))


@router.post("/fine-tunes", status_code=202, responses=refusals(404, 409, 415, 429))
def start_fine_tune(body: FineTuneBody, service: Served, key: IdempotencyKey = None) -> views.JobView:
    """Put a fine-tune into the queue."""
    params = body.fine_tuning_params.as_view()
    return service.jobs.start(body.project_id, params, body.dataset_id, body.name, key, body.overlong)


@router.post("/fine-tunes/estimate", responses=refusals(404, 409, 415))
def estimate_fine_tune(body: EstimateBody, service: Served) -> views.Estimate:
    """Roughly what a fine-tune will take; nothing is started."""
    return service.jobs.estimate(body.project_id, body.fine_tuning_params.as_view(), body.dataset_id)


@router.get("/fine-tunes", responses=refusals(404))
def list_fine_tunes(
    service: Served, project_id: ProjectFilter = None, limit: Limit = PAGE, offset: Offset = 0
) -> views.Page[views.JobView]:
    """Fine-tunes, newest first."""
    return service.jobs.page(project_id, limit, offset)


@router.get("/fine-tunes/{job_id:int}", responses=refusals(404))
def get_fine_tune(job_id: Number, service: Served) -> views.JobView:
    """One fine-tune."""
    return service.jobs.get(job_id)


@router.patch("/fine-tunes/{job_id:int}", responses=refusals(404, 415))
def edit_fine_tune(job_id: Number, body: EditBody, service: Served) -> views.JobView:
    """Give a fine-tune another name or other notes."""
    return service.jobs.edit(job_id, body.name, body.notes)


@router.post("/fine-tunes/{job_id:int}/cancel", status_code=202, responses=refusals(404, 415))
def cancel_fine_tune(job_id: Number, service: Served) -> views.JobView:
    """Take a fine-tune out of the queue, or end it as Ctrl-C does; one that has ended stays as it is."""
    return service.jobs.cancel(job_id)


@router.post("/fine-tunes/{job_id:int}/resume", status_code=202, responses=refusals(404, 409, 415, 429))
def resume_fine_tune(job_id: Number, service: Served) -> views.JobView:
    """Queue a cancelled or failed fine-tune again, to continue its study."""
    return service.jobs.resume(job_id)


@router.get("/fine-tunes/{job_id:int}/leaderboard", responses=refusals(404))
def get_leaderboard(job_id: Number, service: Served) -> list[views.LeaderboardRow]:
    """The trials of a fine-tune, best first."""
    return service.stores.leaderboard(service.jobs.get(job_id))


class _Csv(Response):
    media_type = "text/csv"


@router.get("/fine-tunes/{job_id:int}/leaderboard.csv", responses=json_refusals(404), response_class=_Csv)
def get_leaderboard_table(job_id: Number, service: Served) -> Response:
    """The same as CSV, for spreadsheets."""
    job = service.jobs.get(job_id)
    headers = {"Content-Disposition": f'attachment; filename="{job.study}.csv"'}
    return _Csv(service.stores.leaderboard_csv(job), headers=headers)


@router.get("/fine-tunes/{job_id:int}/log", responses=refusals(404))
def get_log(job_id: Number, service: Served, lines: Lines = 200) -> views.LogTail:
    """The end of a fine-tune's log."""
    return log_tail(Path(service.jobs.get(job_id).folder), lines)


@router.get("/fine-tunes/{job_id:int}/examples", responses=refusals(404))
def get_examples(job_id: Number, service: Served, limit: Limit = PAGE, offset: Offset = 0) -> views.Examples:
    """Predictions of the best trial beside those of the base model, with the judge's reasons."""
    return service.stores.examples(service.jobs.get(job_id), limit, offset)


class _Zip(StreamingResponse):
    media_type = "application/zip"


@router.get("/fine-tunes/{job_id:int}/adapter", responses=json_refusals(404, 409), response_class=_Zip)
def get_adapter(job_id: Number, service: Served) -> StreamingResponse:
    """The best adapter as a ZIP archive: what PEFT loads, and a README that says how."""
    job = service.jobs.get(job_id)
    headers = {"Content-Disposition": f'attachment; filename="{job.study}.zip"'}
    return _Zip(zipped(service.stores.adapter_files(job), job.study), headers=headers)


@router.get(
    "/fine-tunes/{job_id:int}/events",
    responses=json_refusals(404),
    response_class=EventSourceResponse,
    dependencies=[Depends(get_fine_tune)],
)
async def get_events(job_id: Number, service: Served) -> AsyncIterator[ServerSentEvent]:
    """Server-sent events, `state` and `progress`, each with the fine-tune; they end when it does."""
    before: views.JobView | None = None
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
        if job.state in views.ENDED:
            return
        before = job
        await anyio.sleep(EVENT_SECONDS)


def _progress(job: views.JobView) -> tuple[Any, ...]:
    return job.trials_finished, job.trial_current, job.best_score, job.place, job.resumptions, job.stage


@router.get("/judges")
def list_judges(service: Served) -> list[views.JudgeView]:
    """The judges, and what each of them lacks on this server."""
    return service.choices.judges()


@router.get("/models")
def list_models(service: Served) -> list[views.ModelView]:
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
    trials, seconds = counts.pop("trials"), round(time.monotonic() - request.app.state.began, 1)
    answered = sorted(request.app.state.answered.items())
    groups = [
        ("jobs", "gauge", "Fine-tunes by state.", [(f'{{state="{state}"}}', n) for state, n in counts.items()]),
        ("trials_total", "counter", "Finished trials of all fine-tunes.", [("", trials)]),
        ("uptime_seconds", "gauge", "Since the server began.", [("", seconds)]),
        ("requests_total", "counter", "Answers by status.", [(f'{{status="{status}"}}', n) for status, n in answered]),
    ]
    lines = []
    for name, kind, text, values in groups:
        lines += [f"# HELP lorahydra_{name} {text}", f"# TYPE lorahydra_{name} {kind}"]
        lines += [f"lorahydra_{name}{labels} {value}" for labels, value in values]
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
