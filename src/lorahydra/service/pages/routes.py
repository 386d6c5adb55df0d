"""The pages that show something: lists, datasets, fine-tunes, and the log-in form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response

from lorahydra.errors import LorahydraError
from lorahydra.service.api import Number, Offset, ProjectFilter, Served, get_adapter, get_leaderboard_table
from lorahydra.service.pages.chart import chart, leader
from lorahydra.service.pages.example import example_file
from lorahydra.service.pages.forms import ConfigureForm, Sent, path_again, whole_number
from lorahydra.service.pages.rendering import go, is_fragment, render, words_of
from lorahydra.service.pages.shapes import Shapes, shown_rows, trial_names
from lorahydra.service.pages.starting import quick_hint
from lorahydra.service.planning import FEWEST_TRIALS, rows_of, rows_warning
from lorahydra.service.results import log_tail
from lorahydra.service.rows import PAGE
from lorahydra.service.service import Service
from lorahydra.service.uploads import SUFFIXES
from lorahydra.service.views import DEMO_DATASET, Examples, JobView, LeaderboardRow, LogTail, ProjectView

__all__ = ["NO_CHAT", "router", "study"]

PROJECTS = 40
"""Number of projects to choose from at the top of a list."""
JOBS = 20
"""Number of fine-tunes on a page."""
EXAMPLES = 5
"""Number of predictions on a page."""
LOG_LINES = 300
NO_CHAT: Mapping[str, Any] = {"message": "", "tuned": None, "untuned": None, "problem": None}
"""A chat that has not begun."""

router = APIRouter(include_in_schema=False)
router.get("/fine-tunes/{job_id}/adapter")(get_adapter)
router.get("/fine-tunes/{job_id}/leaderboard.csv")(get_leaderboard_table)


@router.get("/")
def home(request: Request, service: Served, offset: Offset = 0) -> Response:
    """The newest project; if there is none, what to do first."""
    newest = service.projects.page(1).items
    return _list(request, service, newest[0] if newest else None, offset)


@router.get("/fine-tunes")
def everything(request: Request, service: Served, offset: Offset = 0) -> Response:
    """Fine-tunes of all projects."""
    return _list(request, service, None, offset)


@router.get("/projects/{project_id}")
def project_page(request: Request, project_id: Number, service: Served, offset: Offset = 0) -> Response:
    """Fine-tunes and datasets of a project."""
    return _list(request, service, service.projects.get(project_id), offset)


@router.get("/jobs")
def jobs_part(request: Request, service: Served, project: ProjectFilter = None, offset: Offset = 0) -> Response:
    """Only the list, as it is now."""
    shown = None if project is None else service.projects.get(project)
    return render(request, "_jobs.html", _jobs(service, shown, offset))


@router.get("/example.csv")
def example(request: Request) -> Response:
    """A file to begin with."""
    headers = {"Content-Disposition": 'attachment; filename="example.csv"', "Vary": "Accept-Language, Cookie"}
    return Response(example_file(words_of(request).language), media_type="text/csv; charset=utf-8", headers=headers)


@router.post("/projects")
def new_project(request: Request, service: Served, sent: Sent) -> Response:
    """Create a project."""
    return go(request, f"/projects/{service.projects.create(str(sent.get('name', ''))).id}")


@router.get("/datasets/{dataset_id}")
def dataset_page(request: Request, dataset_id: Number, service: Served) -> Response:
    """A dataset's report."""
    dataset = service.datasets.get(dataset_id)
    values = {
        "dataset": dataset,
        "project": service.projects.get(dataset.project),
        "report": dataset.report,
        "report_name": dataset.name,
        "refusal": None,
        "offer": None,
        "is_first": service.jobs.is_empty(),
    }
    return render(request, "dataset.html", values)


@router.get("/fine-tunes/{job_id}")
def study_page(request: Request, job_id: Number, service: Served, examples: Offset = 0) -> Response:
    """Everything about a fine-tune."""
    return study(request, service, job_id, examples)


@router.get("/fine-tunes/{job_id}/live")
def live_part(request: Request, job_id: Number, service: Served) -> Response:
    """The part of a fine-tune's page that changes while it runs."""
    return render(request, "_live.html", _live(service, service.jobs.get(job_id)))


@router.get("/fine-tunes/{job_id}/examples")
def examples_part(request: Request, job_id: Number, service: Served, examples: Offset = 0) -> Response:
    """The part with predictions."""
    return render(request, "_examples.html", _examples(service, service.jobs.get(job_id), examples))


@router.get("/fine-tunes/{job_id}/log")
def log_part(request: Request, job_id: Number, service: Served) -> Response:
    """The part with the log."""
    job = service.jobs.get(job_id)
    return render(request, "_log.html", {"job": job, "log": _log(job)})


@router.post("/fine-tunes/{job_id}/edit")
def edit(request: Request, job_id: Number, service: Served, sent: Sent) -> Response:
    """Rename a fine-tune, and change its notes."""
    job = service.jobs.edit(job_id, str(sent.get("name", "")), str(sent.get("notes", "")))
    return go(request, f"/fine-tunes/{job.id}")


@router.post("/fine-tunes/{job_id}/cancel")
def cancel(request: Request, job_id: Number, service: Served) -> Response:
    """End a fine-tune."""
    return go(request, f"/fine-tunes/{service.jobs.cancel(job_id).id}")


@router.post("/fine-tunes/{job_id}/resume")
def resume(request: Request, job_id: Number, service: Served) -> Response:
    """Continue a fine-tune."""
    return go(request, f"/fine-tunes/{service.jobs.resume(job_id).id}")


@router.get("/login")
def login(request: Request, failed: str | None = None, wait: str | None = None) -> Response:
    """The form that asks for the token."""
    # If a part of a page was asked for after the session had ended, the browser loads the page again and gets here.
    headers = {"HX-Refresh": "true"} if is_fragment(request) else {}
    return render(request, "login.html", {"failed": failed is not None, "wait": whole_number(wait)}, headers=headers)


def _list(request: Request, service: Service, project: ProjectView | None, offset: int) -> Response:
    datasets = None if project is None else service.datasets.page(project.id, PAGE)
    newest = service.datasets.get(datasets.items[0].id) if datasets and datasets.items else None
    values = {
        "projects": service.projects.page(PROJECTS),
        "datasets": datasets,
        "configure_path": "/configure" + (f"?project={project.id}" if project else ""),
        "key": ConfigureForm().key,
        "quick_hint": quick_hint(request, service, None if newest is None else newest.name),
        "data_warning": None if newest is None else rows_warning(rows_of(newest.report)["test"]),
        "quick_dataset": DEMO_DATASET if newest is None else newest.id,
        "suffixes": ",".join(SUFFIXES),
        "is_first": service.jobs.is_empty(),
        "demo_trials": FEWEST_TRIALS,
        **_jobs(service, project, offset),
    }
    return render(request, "list.html", values)


def study(
    request: Request, service: Service, job_id: int, examples: int, said: Mapping[str, Any] = NO_CHAT
) -> Response:
    """The page of a fine-tune, with what was said in its chat."""
    job = service.jobs.get(job_id)
    live = _live(service, job)
    values = {
        **_examples(service, job, examples, live["rows"]),
        **live,
        "log": _log(job),
        "chat": said,
        "expires": service.deletions.expires(job),
    }
    return render(request, "study.html", values)


def _jobs(service: Service, project: ProjectView | None, offset: int) -> dict[str, Any]:
    jobs = service.jobs.page(None if project is None else project.id, JOBS, offset)
    return {
        "project": project,
        "jobs": jobs,
        "is_live": any(job.ended is None for job in jobs.items),
        "list_path": "/fine-tunes" if project is None else f"/projects/{project.id}",
        "jobs_address": "/jobs?" + (f"project={project.id}&" if project else ""),
    }


def _log(job: JobView) -> LogTail:
    return log_tail(Path(job.folder), LOG_LINES)


def _live(service: Service, job: JobView) -> dict[str, Any]:
    rows, baseline = service.stores.leaderboard(job), job.validation_baseline
    return {
        "job": job,
        "again": path_again(job),
        "rows": shown_rows(rows),
        "trial": trial_names(rows),
        "leader": leader(rows),
        "final": next((row.final_examples for row in rows if row.final_examples is not None), None),
        "columns": Shapes.columns(rows),
        "chart": chart(rows, job.trials_wanted, None if baseline is None else baseline.combined),
    }


def _examples(
    service: Service, job: JobView, offset: int, rows: Sequence[LeaderboardRow] | None = None
) -> dict[str, Any]:
    try:
        examples, problem = service.stores.examples(job, EXAMPLES, offset), None
    except LorahydraError as error:
        # The run was deleted, or MLflow's store cannot be read; the rest of the page does not need it.
        examples, problem = Examples("", None, [], 0), str(error)
    return {
        "job": job,
        "trial": trial_names(service.stores.leaderboard(job) if rows is None else rows),
        "examples": examples,
        "examples_problem": problem,
        "offset": offset,
        "page_size": EXAMPLES,
    }
