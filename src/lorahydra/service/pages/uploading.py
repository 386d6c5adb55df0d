"""Pages that take a dataset: the upload, and the answer to what was offered for a file that was refused."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool

from lorahydra.service.api import Number, Served, checked, receive
from lorahydra.service.errors import NotFoundError, ServiceRefusal
from lorahydra.service.pages.forms import Sent, whole_number
from lorahydra.service.pages.rendering import go, is_fragment, render, words_of
from lorahydra.service.rows import MOST
from lorahydra.service.service import Service
from lorahydra.service.uploads import SUFFIXES
from lorahydra.service.views import DEMO_DATASET, DatasetView, Page

__all__ = ["data_values", "newest_project", "project_or_first", "router"]

DATA_CHANGED = {"HX-Trigger": "dataset-changed"}
"""Header after which the page asks for what depends on the data."""

MOST_COLUMNS = 8
"""Columns in a preview."""

router = APIRouter(include_in_schema=False, default_response_class=Response)


@router.post("/projects/first/datasets")
async def upload_first(request: Request, service: Served) -> Response:
    """Take a dataset when there is no project yet."""
    return await upload(request, await run_in_threadpool(project_or_first, request, service, None), service)


@router.post("/projects/{project_id}/datasets")
async def upload(request: Request, project_id: Number, service: Served) -> Response:
    """Take a dataset; the answer is the form's part with the data, or a page."""
    await run_in_threadpool(service.projects.get, project_id)
    try:
        with service.datasets.upload(request.headers.get("content-type", "")) as sent:
            await receive(request, sent)
            dataset = await checked(request, service.datasets.keep_or_hold, project_id, sent)
    except ServiceRefusal as refusal:
        return await run_in_threadpool(_refused, request, service, project_id, refusal)
    return await run_in_threadpool(_taken, request, service, dataset)


@router.post("/uploads")
async def settle(request: Request, service: Served, sent: Sent) -> Response:
    """Take a file that waits, in the encoding and with the columns that were chosen."""
    project_id = whole_number(str(sent.get("project", ""))) or 0
    await run_in_threadpool(service.projects.get, project_id)
    places = [whole_number(str(sent.get(name, ""))) for name in ("request", "answer")]
    encoding, token = str(sent.get("encoding", "")) or None, str(sent.get("upload", ""))
    try:
        dataset = await checked(request, service.datasets.settle, project_id, token, encoding, *places)
    except NotFoundError:
        raise
    except ServiceRefusal as refusal:
        return await run_in_threadpool(_refused, request, service, project_id, refusal)
    return await run_in_threadpool(_taken, request, service, dataset)


def _taken(request: Request, service: Service, dataset: DatasetView) -> Response:
    if not is_fragment(request):
        return go(request, f"/datasets/{dataset.id}")
    shown = {"upload_name": dataset.name, "report_name": dataset.name, "report": dataset.report}
    values = {**data_values(service, dataset.project, str(dataset.id)), **shown}
    return render(request, "_data.html", values, 201, DATA_CHANGED)


def _refused(request: Request, service: Service, project_id: int, refusal: ServiceRefusal) -> Response:
    words = words_of(request)
    sources = refusal.report["sources"] if refusal.report else []
    offered = refusal.offer or {}
    name = offered.get("name") or (sources[0]["source"] if sources else words("report.refused"))
    key = f"refusal.{refusal.code}"
    shown = {"upload_name": name, "report_name": name, "report": refusal.report, "refusal": refusal.detail}
    shown |= {
        "reason": words(key) if key in words else None,
        "offer": refusal.offer,
        "refusal_code": refusal.code,
        "most_columns": MOST_COLUMNS,
    }
    if is_fragment(request):
        # None is chosen: what the user wanted is not there, and must not be replaced without a word.
        values = {**data_values(service, project_id, ""), **shown}
        return render(request, "_data.html", values, refusal.status_code, DATA_CHANGED)
    project = service.projects.get(project_id)
    values = {"project": project, "dataset": None, "is_first": service.jobs.is_empty(), **shown}
    return render(request, "dataset.html", values, refusal.status_code)


def data_values(service: Service, project_id: int | None, wanted: str | None) -> dict[str, Any]:
    """What the form's part with the data shows; without a wish, the newest dataset is chosen."""
    datasets = Page([], 0, MOST, 0) if project_id is None else service.datasets.page(project_id, MOST)
    choices = [str(dataset.id) for dataset in datasets.items] + [DEMO_DATASET]
    return {
        "project": None if project_id is None else service.projects.get(project_id),
        "datasets": datasets,
        "chosen_dataset": choices[0] if wanted is None else wanted if wanted in choices else "",
        "suffixes": ",".join(SUFFIXES),
        "upload_name": None,
        "report": None,
        "refusal": None,
        "reason": None,
        "offer": None,
    }


def project_or_first(request: Request, service: Service, project_id: int | None) -> int:
    """The project that is named, else the newest one, else a first one that is created now."""
    if project_id is not None:
        return project_id
    return newest_project(service) or service.projects.create(words_of(request)("project.first")).id


def newest_project(service: Service) -> int | None:
    """The project that was created last."""
    newest = service.projects.page(1).items
    return newest[0].id if newest else None
