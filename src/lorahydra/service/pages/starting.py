"""Pages that start a fine-tune: the form, the upload beside it, the estimate, and the quick start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.concurrency import run_in_threadpool

from lorahydra.service.api import Served, add_dataset
from lorahydra.service.bodies import Number
from lorahydra.service.errors import NotFoundError, ServiceRefusal
from lorahydra.service.pages.answers import PageRoute, go
from lorahydra.service.pages.forms import NO_PARAMS, ConfigureForm, FormError, whole_number
from lorahydra.service.pages.rendering import is_fragment, render, words_of
from lorahydra.service.pages.shapes import plain
from lorahydra.service.planning import FEWEST_TRIALS, MOST_TRIALS
from lorahydra.service.rows import MOST
from lorahydra.service.service import Service
from lorahydra.service.uploads import SUFFIXES, BadDatasetError
from lorahydra.service.views import DatasetView, FineTuneParams, Page

__all__ = ["Sent", "quick_hint", "router"]

NO_JUDGE = "judge_not_configured"
"""Code of a refusal that has a page of its own."""
USED_KEY = "idempotency_key_reused"
"""Code of the refusal of a form that was changed after it had started a fine-tune (the browser's "back")."""
TRIALS = {"fewest": FEWEST_TRIALS, "most": MOST_TRIALS}

router = APIRouter(route_class=PageRoute, include_in_schema=False, default_response_class=Response)


async def _sent(request: Request) -> Mapping[str, Any]:
    return await request.form()


Sent = Annotated[Mapping[str, Any], Depends(_sent)]


@router.get("/configure")
def configure(request: Request, service: Served) -> Response:
    """The form, filled in with what the address says."""
    asked = dict(request.query_params)
    if "project" not in asked and (newest := _newest(service)) is not None:
        asked["project"] = str(newest)
    if not any(judge.is_default and judge.is_configured for judge in service.choices.judges()):
        asked.setdefault("judge", "off")
    return _form(request, service, ConfigureForm.read(asked))


@router.post("/configure")
def start(request: Request, service: Served, sent: Sent) -> Response:
    """Start what the form says; with the other button, only estimate it."""
    form, words = ConfigureForm.read(sent), words_of(request)
    if form.action == "estimate":
        return _form(request, service, form)
    try:
        params = form.params()
        if form.project is None and (newest := _newest(service)) is not None:
            # The form was opened when there was no project: show first which data would be used.
            form = replace(form, project=newest)
            if service.jobs.repeated(form.key, newest, params, form.dataset_id, form.name or None) is None:
                return _form(request, service, form, 409, problem=words("configure.project.new"))
        project = _project_or_first(request, service, form.project)
        form = replace(form, project=project)
        job = service.jobs.start(project, params, form.dataset_id, form.name or None, form.key or None)
    except FormError as error:
        return _form(request, service, form, 422, problem=words(error.key, **TRIALS), field=error.field)
    except ServiceRefusal as refusal:
        key = f"refusal.{refusal.code}"
        problem = words(key if key in words else "configure.refused")
        if refusal.code == USED_KEY:
            form = replace(form, key=ConfigureForm().key)
        return _form(request, service, form, refusal.status, problem=problem, detail=refusal.message)
    return go(request, f"/fine-tunes/{job.id}")


@router.post("/quick-start")
def quick_start(request: Request, service: Served, sent: Sent) -> Response:
    """Start at once with values that suit most tasks; if no judge is set up, ask first."""
    named, key = whole_number(str(sent.get("project", ""))), str(sent.get("key", ""))
    params = FineTuneParams(use_llm_judge=sent.get("judge") != "off")
    if named is None and (newest := _newest(service)) is not None:
        repeated = service.jobs.repeated(key, newest, params) if key else None
        # The list shows which data will be used.
        return go(request, "/" if repeated is None else f"/fine-tunes/{repeated.id}")
    project = _project_or_first(request, service, named)
    try:
        job = service.jobs.start(project, params, idempotency_key=key or None)
    except ServiceRefusal as refusal:
        if refusal.code != NO_JUDGE:
            raise
        return _without_judge(request, service, project)
    return go(request, f"/fine-tunes/{job.id}")


@router.get("/estimate")
def estimate(request: Request, service: Served) -> Response:
    """Roughly what the form's fine-tune would take."""
    return render(request, "_estimate.html", _estimated(request, service, ConfigureForm.read(request.query_params)))


@router.post("/projects/first/datasets")
async def upload_first(request: Request, service: Served) -> Response:
    """Take a dataset when there is no project yet."""
    return await upload(request, await run_in_threadpool(_project_or_first, request, service, None), service)


@router.post("/projects/{project_id}/datasets")
async def upload(request: Request, project_id: Number, service: Served) -> Response:
    """Take a dataset; the answer is the form's part with the data, or a page."""
    try:
        dataset = await add_dataset(project_id, request, service)
    except NotFoundError:
        raise
    except ServiceRefusal as refusal:
        return await run_in_threadpool(_refused, request, service, project_id, refusal)
    return await run_in_threadpool(_taken, request, service, dataset)


def quick_hint(request: Request, service: Service, dataset: str | None) -> str:
    """What the quick start will do, in one line.

    Args:
        request: Tells the language.
        service: Tells the judge.
        dataset: Name of the project's newest dataset; None is the demo dataset.
    """
    words = words_of(request)
    judge = next((judge for judge in service.choices.judges() if judge.is_default and judge.is_configured), None)
    data = words("dataset.demo") if dataset is None else plain(dataset)
    if judge is None:
        return words("list.quick.nojudge", n=NO_PARAMS.n_trials, data=data)
    return words("list.quick.hint", n=NO_PARAMS.n_trials, judge=judge.id, data=data)


def _taken(request: Request, service: Service, dataset: DatasetView) -> Response:
    if not is_fragment(request):
        return go(request, f"/datasets/{dataset.id}")
    values = {
        "upload_name": dataset.name,
        "report_name": dataset.name,
        "report": dataset.report,
        "chosen_dataset": dataset.id,
    }
    headers = {"HX-Trigger": "dataset-changed"}
    return render(request, "_data.html", {**_data(service, dataset.project), **values}, 201, headers)


def _refused(request: Request, service: Service, project_id: int, refusal: ServiceRefusal) -> Response:
    report = refusal.report if isinstance(refusal, BadDatasetError) else None
    sources = report["sources"] if report else []
    name = sources[0]["source"] if sources else words_of(request)("report.refused")
    values = {"report": report, "report_name": name, "upload_name": name, "refusal": refusal.message, "dataset": None}
    if is_fragment(request):
        return render(request, "_data.html", {**_data(service, project_id), **values}, refusal.status)
    return render(request, "dataset.html", {"project": service.projects.get(project_id), **values}, refusal.status)


def _data(service: Service, project_id: int | None) -> dict[str, Any]:
    """What the form's part with the data shows."""
    return {
        "project": None if project_id is None else service.projects.get(project_id),
        "datasets": Page([], 0, MOST, 0) if project_id is None else service.datasets.page(project_id, MOST),
        "chosen_dataset": None,
        "suffixes": ",".join(SUFFIXES),
        "upload_name": None,
        "report": None,
        "refusal": None,
    }


def _form(request: Request, service: Service, form: ConfigureForm, status: int = 200, **problem: str) -> Response:
    judges = service.choices.judges()
    values = {
        **_data(service, form.project),
        "chosen_dataset": form.dataset_id,
        "form": form,
        "judges": judges,
        "default_judge": next((judge.id for judge in judges if judge.is_default), ""),
        "models": service.choices.models(),
        "upload_path": f"/projects/{'first' if form.project is None else form.project}/datasets",
        "in_dialog": is_fragment(request),
        "problem": None,
        "detail": None,
        "field": None,
        **TRIALS,
        **_estimated(request, service, form),
        **problem,
    }
    return render(request, "_configure.html" if is_fragment(request) else "configure.html", values, status)


def _estimated(request: Request, service: Service, form: ConfigureForm) -> dict[str, Any]:
    words = words_of(request)
    try:
        return {"estimate": service.jobs.estimate(form.project, form.params(), form.dataset_id)}
    except FormError as error:
        problem = words(error.key, **TRIALS)
    except ServiceRefusal as refusal:
        key = f"refusal.{refusal.code}"
        problem = words(key) if key in words else str(refusal)
    return {"estimate": None, "estimate_problem": problem}


def _without_judge(request: Request, service: Service, project_id: int) -> Response:
    values = {
        "project": service.projects.get(project_id),
        "key": ConfigureForm().key,
        "judges": service.choices.judges(),
        "configure_path": f"/configure?project={project_id}",
    }
    return render(request, "no_judge.html", values, 409)


def _project_or_first(request: Request, service: Service, project_id: int | None) -> int:
    """The project that is named, else the newest one, else a first one that is created now."""
    if project_id is not None:
        return project_id
    return _newest(service) or service.projects.create(words_of(request)("project.first")).id


def _newest(service: Service) -> int | None:
    newest = service.projects.page(1).items
    return newest[0].id if newest else None
