"""Pages that start a fine-tune: the form, the upload beside it, the estimate, and the quick start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.concurrency import run_in_threadpool

from lorahydra.service.api import Number, Served, add_dataset
from lorahydra.service.errors import ConflictError, NotFoundError, ServiceRefusal
from lorahydra.service.pages.forms import NO_PARAMS, ConfigureForm, whole_number
from lorahydra.service.pages.rendering import go, is_fragment, render, words_of
from lorahydra.service.pages.shapes import plain
from lorahydra.service.planning import FEWEST_TRIALS, MOST_TRIALS
from lorahydra.service.rows import MOST
from lorahydra.service.service import Service
from lorahydra.service.uploads import SUFFIXES
from lorahydra.service.views import DatasetView, FineTuneParams, Page

__all__ = ["Sent", "quick_hint", "router"]

USED_KEY, BAD_TRIALS = "idempotency_key_reused", "bad_trials"
"""Codes of refusals that the pages treat in their own way."""
TRIALS = {"fewest": FEWEST_TRIALS, "most": MOST_TRIALS}

router = APIRouter(include_in_schema=False, default_response_class=Response)


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
    form = ConfigureForm.read(asked)
    if form.base_model and form.base_model not in {model.name for model in service.choices.models()}:
        form = replace(form, base_model="", other_model=form.base_model)
    return _form(request, service, form)


@router.post("/configure")
def start(request: Request, service: Served, sent: Sent) -> Response:
    """Start what the form says; with the other button, only estimate it."""
    form = ConfigureForm.read(sent)
    if form.action == "estimate":
        return _form(request, service, form)
    opened_without, newest = form.project is None, _newest(service)
    try:
        project = _project_or_first(request, service, form.project)
        form = replace(form, project=project)
        if opened_without and newest is not None and not service.jobs.has_started(form.key):
            # There was no project when the form was opened: show first which data would be used.
            raise ConflictError("", "project_is_new")
        job = service.jobs.start(project, form.params(), form.dataset_id, form.name or None, form.key or None)
    except ServiceRefusal as refusal:
        if refusal.code == USED_KEY:  # it was changed after it had started a fine-tune, by the browser's "back"
            form = replace(form, key=ConfigureForm().key)
        return _form(request, service, form, refusal)
    return go(request, f"/fine-tunes/{job.id}")


@router.post("/quick-start")
def quick_start(request: Request, service: Served, sent: Sent) -> Response:
    """Start at once with values that suit most tasks; ask first if there is no judge, or if the model is not here."""
    named, key = whole_number(str(sent.get("project", ""))), str(sent.get("key", ""))
    if named is None and _newest(service) is not None and not service.jobs.has_started(key):
        return go(request, "/")  # the list shows which data will be used
    project = _project_or_first(request, service, named)
    model = str(sent.get("model", "")) or None
    params = FineTuneParams(use_llm_judge=sent.get("judge") != "off", base_model_name=model)
    # With the default model fetched at the start, it would fail where there is no hub.
    here = service.choices.in_place_of_the_default() if model is None else None
    judges = service.choices.judges()
    lacks_judge = params.use_llm_judge and not any(judge.is_default and judge.is_configured for judge in judges)
    if here is None and not lacks_judge:
        job = service.jobs.start(project, params, idempotency_key=key or None)
        return go(request, f"/fine-tunes/{job.id}")
    values = {
        "project": service.projects.get(project),
        "key": ConfigureForm().key,
        "judges": judges,
        "lacks_judge": lacks_judge,
        "without_judge": not params.use_llm_judge,
        "model": model,
        "here": here,
        "default_model": service.choices.default_model(),
        "configure_path": f"/configure?project={project}",
    }
    return render(request, "quick_start.html", values, ConflictError.status)


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
    """What the quick start will do, in one line; `dataset` is the name of the newest one, None is the demo dataset."""
    words = words_of(request)
    judge = next((judge for judge in service.choices.judges() if judge.is_default and judge.is_configured), None)
    data = words("dataset.demo") if dataset is None else plain(dataset)
    if judge is None:
        return words("list.quick.nojudge", n=NO_PARAMS.n_trials, data=data)
    return words("list.quick.hint", n=NO_PARAMS.n_trials, judge=judge.id, data=data)


def _taken(request: Request, service: Service, dataset: DatasetView) -> Response:
    if not is_fragment(request):
        return go(request, f"/datasets/{dataset.id}")
    shown = {"upload_name": dataset.name, "report_name": dataset.name, "report": dataset.report}
    values = {**_data(service, dataset.project), **shown, "chosen_dataset": dataset.id}
    return render(request, "_data.html", values, 201, {"HX-Trigger": "dataset-changed"})


def _refused(request: Request, service: Service, project_id: int, refusal: ServiceRefusal) -> Response:
    sources = refusal.report["sources"] if refusal.report else []
    name = sources[0]["source"] if sources else words_of(request)("report.refused")
    shown = {"upload_name": name, "report_name": name, "report": refusal.report, "refusal": refusal.detail}
    if is_fragment(request):
        return render(request, "_data.html", {**_data(service, project_id), **shown}, refusal.status_code)
    values = {"project": service.projects.get(project_id), "dataset": None, **shown}
    return render(request, "dataset.html", values, refusal.status_code)


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


def _form(request: Request, service: Service, form: ConfigureForm, refusal: ServiceRefusal | None = None) -> Response:
    judges, problem = service.choices.judges(), None
    if refusal is not None:
        problem = _problem(request, refusal) or words_of(request)("configure.refused")
    has_bad_trials = refusal is not None and refusal.code == BAD_TRIALS
    values = {
        **_data(service, form.project),
        "chosen_dataset": form.dataset_id,
        "form": form,
        "judges": judges,
        "default_judge": next((judge.id for judge in judges if judge.is_default), ""),
        "models": service.choices.models(),
        "upload_path": f"/projects/{'first' if form.project is None else form.project}/datasets",
        "in_dialog": is_fragment(request),
        "problem": problem,
        "detail": refusal.detail if refusal and not has_bad_trials else None,
        "has_bad_trials": has_bad_trials,
        **TRIALS,
        **_estimated(request, service, form),
    }
    template = "_configure.html" if is_fragment(request) else "configure.html"
    return render(request, template, values, refusal.status_code if refusal else 200)


def _estimated(request: Request, service: Service, form: ConfigureForm) -> dict[str, Any]:
    try:
        return {"estimate": service.jobs.estimate(form.project, form.params(), form.dataset_id)}
    except ServiceRefusal as refusal:
        detail = words_of(request).said(refusal.detail) or refusal.detail
        return {"estimate": None, "estimate_problem": _problem(request, refusal) or detail}


def _problem(request: Request, refusal: ServiceRefusal) -> str | None:
    """A refusal in the reader's language; None if the page has no message for it."""
    words, key = words_of(request), f"refusal.{refusal.code}"
    return words(key, **TRIALS) if key in words else None


def _project_or_first(request: Request, service: Service, project_id: int | None) -> int:
    """The project that is named, else the newest one, else a first one that is created now."""
    if project_id is not None:
        return project_id
    return _newest(service) or service.projects.create(words_of(request)("project.first")).id


def _newest(service: Service) -> int | None:
    newest = service.projects.page(1).items
    return newest[0].id if newest else None
