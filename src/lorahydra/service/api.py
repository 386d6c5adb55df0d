"""The HTTP API, `/api/v1`: each route is one method of `Service`."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse, PlainTextResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from lorahydra import __version__
from lorahydra.errors import LorahydraError, OutputError
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
from lorahydra.service.errors import ServiceRefusal, TooLargeError
from lorahydra.service.guard import API, AROUND_UPLOAD
from lorahydra.service.limits import Allowance
from lorahydra.service.receiving import FileReceiver
from lorahydra.service.service import PAGE, Service
from lorahydra.service.uploads import LONGEST_ENCODING, Upload
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
HEARTBEAT_SECONDS = 15.0
CHECKS_AT_ONCE = 2
UPLOAD_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "encoding": {
                            "type": "string",
                            "maxLength": LONGEST_ENCODING,
                            "description": "As the query parameter `encoding`, which comes before it.",
                        },
                    },
                }
            }
        },
    }
}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The answers that are no success, for OpenAPI."""
    return {status: {"model": Refusal} for status in statuses}


def json_refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The same for routes whose success is no JSON."""
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Refusal"}}}
    return {status: {"description": "Refused", "content": content} for status in (*ALWAYS, *statuses)}


ALWAYS = (400, 401, 403, 413, 422, 500, 503)

router = APIRouter(prefix=API, responses=refusals(*ALWAYS))


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _starts(request: Request) -> Allowance:
    starts: Allowance = request.app.state.starts
    return starts


Served = Annotated[Service, Depends(_service)]
Starts = Annotated[Allowance, Depends(_starts)]


@router.post("/projects", status_code=201, responses=refusals(415))
def create_project(body: ProjectBody, service: Served) -> ProjectView:
    """Make a project."""
    return service.create_project(body.name)


@router.get("/projects")
def list_projects(service: Served, limit: Limit = PAGE, offset: Offset = 0) -> Page[ProjectView]:
    """Projects, the newest first."""
    return service.projects(limit, offset)


@router.get("/projects/{project_id:int}", responses=refusals(404))
def get_project(project_id: Number, service: Served) -> ProjectView:
    """One project."""
    return service.project(project_id)


@router.post(
    "/projects/{project_id:int}/datasets", status_code=201, responses=refusals(404, 415), openapi_extra=UPLOAD_FORM
)
async def add_dataset(
    project_id: Number, request: Request, service: Served, encoding: TextEncoding = None
) -> DatasetView:
    """Upload a dataset (JSONL, JSON, CSV, TSV or Parquet), which is checked as `lorahydra data check` does."""
    await run_in_threadpool(service.project, project_id)
    most = service.config.upload_limit + AROUND_UPLOAD
    with ExitStack() as kept:
        uploads: list[Upload] = []

        def begin(name: str) -> Upload:
            uploads.append(kept.enter_context(service.upload(project_id, name)))
            return uploads[0]

        receiver, received = FileReceiver(request.headers.get("content-type", ""), begin), 0
        try:
            async for chunk in request.stream():
                received += len(chunk)
                if received > most:
                    raise TooLargeError(f"the request has more than {most} bytes")
                await run_in_threadpool(receiver.feed, chunk)
        except ClientDisconnect:
            raise ServiceRefusal("the upload was broken off", "bad_form") from None
        receiver.require_file()
        said = encoding or receiver.encoding
        return await anyio.to_thread.run_sync(
            service.keep_upload, project_id, uploads[0], said, limiter=request.app.state.checks
        )


@router.get("/projects/{project_id:int}/datasets", responses=refusals(404))
def list_datasets(project_id: Number, service: Served, limit: Limit = PAGE, offset: Offset = 0) -> Page[DatasetView]:
    """Datasets of a project, the newest first, without their reports."""
    return service.datasets(project_id, limit, offset)


@router.get("/datasets/{dataset_id:int}", responses=refusals(404))
def get_dataset(dataset_id: Number, service: Served) -> DatasetView:
    """One dataset with its report."""
    return service.dataset(dataset_id)


@router.post("/fine-tunes", status_code=202, responses=refusals(404, 409, 415, 429))
def start_fine_tune(body: FineTuneBody, service: Served, starts: Starts, key: IdempotencyKey = None) -> JobView:
    """Put a fine-tune into the queue."""
    params = body.fine_tuning_params.as_view()
    if key is not None:
        known = service.repeated(key, body.project_id, params, body.dataset_id, body.name)
        if known is not None:
            return known
    starts.take()
    return service.start(body.project_id, params, dataset_id=body.dataset_id, name=body.name, idempotency_key=key)


@router.post("/fine-tunes/estimate", responses=refusals(404, 409, 415))
def estimate_fine_tune(body: EstimateBody, service: Served) -> Estimate:
    """What a fine-tune will take, roughly; nothing is started."""
    return service.estimate(body.project_id, body.fine_tuning_params.as_view(), body.dataset_id)


@router.get("/fine-tunes", responses=refusals(404))
def list_fine_tunes(
    service: Served, project_id: ProjectFilter = None, limit: Limit = PAGE, offset: Offset = 0
) -> Page[JobView]:
    """Fine-tunes, the newest first."""
    return service.jobs(project_id, limit, offset)


@router.get("/fine-tunes/{job_id:int}", responses=refusals(404))
def get_fine_tune(job_id: Number, service: Served) -> JobView:
    """One fine-tune."""
    return service.job(job_id)


@router.post("/fine-tunes/{job_id:int}/cancel", status_code=202, responses=refusals(404, 415))
def cancel_fine_tune(job_id: Number, service: Served) -> JobView:
    """Take it out of the queue, or end it as by Ctrl-C; what has ended stays as it is."""
    return service.cancel(job_id)


@router.post("/fine-tunes/{job_id:int}/resume", status_code=202, responses=refusals(404, 409, 415, 429))
def resume_fine_tune(job_id: Number, service: Served, starts: Starts) -> JobView:
    """Queue a cancelled or failed one again, to go on in the same study."""
    starts.take()
    return service.resume(job_id)


@router.get("/fine-tunes/{job_id:int}/leaderboard", responses=refusals(404))
def get_leaderboard(job_id: Number, service: Served) -> list[LeaderboardRow]:
    """Its trials, best first."""
    return service.leaderboard(job_id)


@router.get("/fine-tunes/{job_id:int}/log", responses=refusals(404))
def get_log(job_id: Number, service: Served, lines: Lines = 200) -> LogTail:
    """The end of its log."""
    return service.log(job_id, lines)


@router.get("/fine-tunes/{job_id:int}/examples", responses=refusals(404))
def get_examples(job_id: Number, service: Served, limit: Limit = PAGE, offset: Offset = 0) -> Examples:
    """Answers of its best trial beside those of the untuned model."""
    return service.examples(job_id, limit, offset)


class _Zip(StreamingResponse):
    media_type = "application/zip"


@router.get("/fine-tunes/{job_id:int}/adapter", responses=json_refusals(404, 409), response_class=_Zip)
def get_adapter(job_id: Number, service: Served) -> StreamingResponse:
    """The best adapter as a ZIP archive, in PEFT's format."""
    headers = {"Content-Disposition": f'attachment; filename="{service.job(job_id).study}.zip"'}
    return _Zip(service.adapter(job_id), headers=headers)


class _EventStream(StreamingResponse):
    media_type = "text/event-stream"


@router.get("/fine-tunes/{job_id:int}/events", responses=json_refusals(404), response_class=_EventStream)
def get_events(job_id: Number, service: Served) -> StreamingResponse:
    """Server-sent events: `state` and `progress`, each with the job; ends when the job does."""
    service.job(job_id)
    return _EventStream(_events(service, job_id), headers={"Cache-Control": "no-cache"})


async def _events(service: Service, job_id: int) -> AsyncIterator[str]:
    before: JobView | None = None
    said = time.monotonic()
    while not service.is_closing:
        try:
            job = await run_in_threadpool(service.job, job_id)
        except LorahydraError as error:
            yield _event("error", {"detail": str(error)})
            return
        if before is None or job.state != before.state:
            yield _event("state", _plain(job))
        elif _progress(job) != _progress(before):
            yield _event("progress", _plain(job))
        elif time.monotonic() - said > HEARTBEAT_SECONDS:
            said = time.monotonic()
            yield ": still there\n\n"
        if job.state in ENDED:
            return
        before = job
        await anyio.sleep(EVENT_SECONDS)


def _progress(job: JobView) -> tuple[Any, ...]:
    return job.trials_finished, job.trial_current, job.best_score, job.place, job.resumptions


def _plain(job: JobView) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(JobView).dump_python(job, mode="json")


def _event(name: str, content: Any) -> str:
    return f"event: {name}\ndata: {json.dumps(content)}\n\n"


@router.get("/judges")
def list_judges(service: Served) -> list[JudgeView]:
    """The judges, and what each one lacks on this server."""
    return service.judges()


@router.get("/models")
def list_models(service: Served) -> list[ModelView]:
    """Base models that can be named; other hub ids can be as well."""
    return service.models()


@router.get("/health")
def get_health(service: Served) -> dict[str, str]:
    """Whether the server and its database answer and fine-tunes are looked after; asks for no token."""
    service.counts()
    if service.fault is not None:
        raise OutputError(service.fault)
    return {"status": "ok", "version": __version__}


@router.get("/metrics", responses=json_refusals(), response_class=PlainTextResponse)
def get_metrics(request: Request, service: Served) -> str:
    """Numbers for Prometheus."""
    counts = service.counts()
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
    """The routes as a plain page; loads nothing from anywhere."""
    rows = "".join(
        f"<tr><td>{method.upper()}</td><td><code>{path}</code></td><td>{operation.get('description', '')}</td></tr>"
        for path, operations in request.app.openapi()["paths"].items()
        for method, operation in operations.items()
    )
    return (
        f'<!doctype html><html lang="en"><title>lorahydra API</title><h1>lorahydra API</h1>'
        f'<p>The whole description: <a href="{API}/openapi.json">openapi.json</a></p><table>{rows}</table></html>'
    )
