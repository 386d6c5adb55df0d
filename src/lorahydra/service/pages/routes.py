"""The web page: lists, studies and forms as HTML from the server, in English and Russian.

```python
app.include_router(pages_router())      # beside the API, whose `app.state` it shares
```
Everything works by links and forms. Where there is JavaScript, htmx replaces parts of a page: the same addresses answer
a request that has `HX-Request` with a part. What a page shows is escaped by the templates; it holds no script and no
style of its own, so that the content policy can forbid both.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from lorahydra.errors import LorahydraError
from lorahydra.service.api import Served, Starts, get_adapter
from lorahydra.service.bodies import Number, Offset, ProjectFilter
from lorahydra.service.errors import NotFoundError
from lorahydra.service.pages.answers import PageRoute, go
from lorahydra.service.pages.chart import chart
from lorahydra.service.pages.forms import ConfigureForm
from lorahydra.service.pages.rendering import STATIC_FILES, is_fragment, render, static_file
from lorahydra.service.pages.shapes import Shapes
from lorahydra.service.pages.starting import Sent, quick_hint
from lorahydra.service.pages.starting import router as starting
from lorahydra.service.service import PAGE, Service
from lorahydra.service.uploads import SUFFIXES
from lorahydra.service.views import ENDED, Examples, JobView, ProjectView

__all__ = ["pages_router"]

PROJECTS = 40
"""Projects to choose from at the top of a list."""
JOBS = 20
"""Fine-tunes on a page."""
EXAMPLES = 5
"""Answers on a page."""
LOG_LINES = 300
FOREVER = "public, max-age=31536000, immutable"
"""For static files: their address has their digest."""

router = APIRouter(route_class=PageRoute, include_in_schema=False)


def pages_router() -> APIRouter:
    """All pages; they come before the routes of others with the same paths, such as a plainer `/login`."""
    every = APIRouter()
    every.include_router(router)
    every.include_router(starting)
    return every


@router.get("/", response_model=None)
def home(request: Request, service: Served, offset: Offset = 0) -> Response:
    """The newest project; without one, what to do first."""
    newest = service.projects(1).items
    return _list(request, service, newest[0] if newest else None, offset)


@router.get("/fine-tunes", response_model=None)
def everything(request: Request, service: Served, offset: Offset = 0) -> Response:
    """Fine-tunes of all projects."""
    return _list(request, service, None, offset)


@router.get("/projects/{project_id}", response_model=None)
def project_page(request: Request, project_id: Number, service: Served, offset: Offset = 0) -> Response:
    """Fine-tunes and datasets of a project."""
    return _list(request, service, service.project(project_id), offset)


@router.get("/jobs", response_model=None)
def jobs_part(request: Request, service: Served, project: ProjectFilter = None, offset: Offset = 0) -> Response:
    """The list alone, as it is now."""
    shown = None if project is None else service.project(project)
    return render(request, "_jobs.html", _jobs(service, shown, offset))


@router.post("/projects", response_model=None)
def new_project(request: Request, service: Served, sent: Sent) -> Response:
    """Make a project."""
    return go(request, f"/projects/{service.create_project(str(sent.get('name', ''))).id}")


@router.get("/datasets/{dataset_id}", response_model=None)
def dataset_page(request: Request, dataset_id: Number, service: Served) -> Response:
    """A dataset's report."""
    dataset = service.dataset(dataset_id)
    values = {
        "dataset": dataset,
        "project": service.project(dataset.project),
        "report": dataset.report,
        "report_name": dataset.name,
        "refusal": None,
    }
    return render(request, "dataset.html", values)


@router.get("/fine-tunes/{job_id}", response_model=None)
def study_page(request: Request, job_id: Number, service: Served, examples: Offset = 0) -> Response:
    """A fine-tune with everything known of it."""
    job = service.job(job_id)
    values = {**_live(service, job), **_examples(service, job, examples), "log": service.log(job_id, LOG_LINES)}
    return render(request, "study.html", values)


@router.get("/fine-tunes/{job_id}/live", response_model=None)
def live_part(request: Request, job_id: Number, service: Served) -> Response:
    """The part of it that changes while it runs."""
    return render(request, "_live.html", _live(service, service.job(job_id)))


@router.get("/fine-tunes/{job_id}/examples", response_model=None)
def examples_part(request: Request, job_id: Number, service: Served, examples: Offset = 0) -> Response:
    """The part of it with answers."""
    return render(request, "_examples.html", _examples(service, service.job(job_id), examples))


@router.get("/fine-tunes/{job_id}/log", response_model=None)
def log_part(request: Request, job_id: Number, service: Served) -> Response:
    """The part of it with the log."""
    job = service.job(job_id)
    return render(
        request, "_log.html", {"job": job, "ended": job.state in ENDED, "log": service.log(job_id, LOG_LINES)}
    )


@router.post("/fine-tunes/{job_id}/cancel", response_model=None)
def cancel(request: Request, job_id: Number, service: Served) -> Response:
    """End a fine-tune."""
    return go(request, f"/fine-tunes/{service.cancel(job_id).id}")


@router.post("/fine-tunes/{job_id}/resume", response_model=None)
def resume(request: Request, job_id: Number, service: Served, starts: Starts) -> Response:
    """Go on with it."""
    starts.take()
    return go(request, f"/fine-tunes/{service.resume(job_id).id}")


@router.get("/fine-tunes/{job_id}/adapter", response_model=None)
def adapter(job_id: Number, service: Served) -> Response:
    """The best adapter, as a download; unlike the API's, it refuses with a page."""
    return get_adapter(job_id, service)


@router.get("/login", response_model=None)
def login(request: Request, failed: str | None = None) -> Response:
    """The form that asks for the token."""
    # A part of a page that was asked for after the session's end: the browser loads the page again, and gets here.
    headers = {"HX-Refresh": "true"} if is_fragment(request) else {}
    return render(request, "login.html", {"failed": failed is not None}, headers=headers)


@router.get("/static/{name}", response_model=None)
def static(name: str) -> Response:
    """A stylesheet, script or picture."""
    if name not in STATIC_FILES:
        raise NotFoundError(f"there is no {name}")
    return Response(static_file(name)[0], media_type=STATIC_FILES[name], headers={"Cache-Control": FOREVER})


def _list(request: Request, service: Service, project: ProjectView | None, offset: int) -> Response:
    datasets = None if project is None else service.datasets(project.id, PAGE)
    newest = datasets.items[0].name if datasets and datasets.items else None
    values = {
        "projects": service.projects(PROJECTS),
        "datasets": datasets,
        "configure_path": "/configure" + (f"?project={project.id}" if project else ""),
        "key": ConfigureForm().key,
        "quick_hint": quick_hint(request, service, newest),
        "suffixes": ",".join(SUFFIXES),
        **_jobs(service, project, offset),
    }
    return render(request, "list.html", values)


def _jobs(service: Service, project: ProjectView | None, offset: int) -> dict[str, Any]:
    jobs = service.jobs(None if project is None else project.id, JOBS, offset)
    return {
        "project": project,
        "jobs": jobs,
        "is_live": any(job.state not in ENDED for job in jobs.items),
        "list_path": "/fine-tunes" if project is None else f"/projects/{project.id}",
        "jobs_address": "/jobs?" + (f"project={project.id}&" if project else ""),
    }


def _live(service: Service, job: JobView) -> dict[str, Any]:
    rows = service.leaderboard(job.id)
    return {
        "job": job,
        "ended": job.state in ENDED,
        "rows": rows,
        "columns": Shapes.columns(rows),
        "chart": chart(rows, job.trials_wanted),
    }


def _examples(service: Service, job: JobView, offset: int) -> dict[str, Any]:
    try:
        examples, problem = service.examples(job.id, EXAMPLES, offset), None
    except LorahydraError as error:
        # A run that was deleted in MLflow, or its store away: the rest of the page does not need them.
        examples, problem = Examples("", None, [], 0), str(error)
    return {
        "job": job,
        "ended": job.state in ENDED,
        "examples": examples,
        "examples_problem": problem,
        "offset": offset,
        "page_size": EXAMPLES,
    }
