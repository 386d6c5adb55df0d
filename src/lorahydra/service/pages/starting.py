"""Pages that start a fine-tune: the form, the upload beside it, the estimate, and the quick start."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request, Response

from lorahydra.service.api import Served
from lorahydra.service.errors import ConflictError, ServiceRefusal
from lorahydra.service.pages.forms import NO_PARAMS, ConfigureForm, Sent
from lorahydra.service.pages.rendering import go, is_fragment, render, words_of
from lorahydra.service.pages.shapes import plain
from lorahydra.service.pages.uploading import data_values, newest_project, project_or_first
from lorahydra.service.planning import DEMO_MODEL, FEWEST_TRIALS, MOST_TRIALS
from lorahydra.service.service import Service
from lorahydra.service.views import DEMO_DATASET, FineTuneParams

__all__ = ["quick_hint", "router"]

USED_KEY, BAD_TRIALS = "idempotency_key_reused", "bad_trials"
TOO_LONG, BAD_ROWS, NO_DATASET = "rows_too_long", "bad_dataset", "no_dataset"
"""Codes of refusals that the pages treat in their own way."""
TRIALS = {"fewest": FEWEST_TRIALS, "most": MOST_TRIALS}

router = APIRouter(include_in_schema=False, default_response_class=Response)


@router.get("/configure")
def configure(request: Request, service: Served) -> Response:
    """The form, filled in with what the address says."""
    asked = dict(request.query_params)
    if "project" not in asked and (newest := newest_project(service)) is not None:
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
    try:
        dataset_id = form.dataset_id
        project = project_or_first(request, service, form.project)
        form = replace(form, project=project)
        name, key = form.name or None, form.key or None
        job = service.jobs.start(project, form.params(), dataset_id, name, key, form.chosen_overlong)
    except ServiceRefusal as refusal:
        if refusal.code == USED_KEY:  # it was changed after it had started a fine-tune, by the browser's "back"
            form = replace(form, key=ConfigureForm().key)
        return _form(request, service, form, refusal)
    return go(request, f"/fine-tunes/{job.id}")


@router.post("/quick-start")
def quick_start(request: Request, service: Served, sent: Sent) -> Response:
    """Start at once with values that suit most tasks; ask first if there is no judge, or if the model is not here."""
    form = ConfigureForm.read(sent)
    project = project_or_first(request, service, form.project)
    model = str(sent.get("model", "")) or None
    params = FineTuneParams(use_llm_judge=form.judge != "off", base_model_name=model)
    # With the default model fetched at the start, it would fail where there is no hub.
    here = service.choices.in_place_of_the_default() if model is None else None
    judges = service.choices.judges()
    lacks_judge = params.use_llm_judge and not any(judge.is_default and judge.is_configured for judge in judges)
    if here is None and not lacks_judge:
        return _started_at_once(request, service, project, replace(form, base_model=model or ""), params)
    data = data_values(service, project, form.dataset)
    values = {
        "project": data["project"],
        "dataset": data["chosen_dataset"],
        "key": ConfigureForm().key,
        "judges": judges,
        "lacks_judge": lacks_judge,
        "without_judge": not params.use_llm_judge,
        "model": model,
        "here": here,
        "default_model": service.choices.default_model(),
        "configure_path": f"/configure?project={project}&dataset={data['chosen_dataset']}",
    }
    return render(request, "quick_start.html", values, ConflictError.status)


def _started_at_once(
    request: Request, service: Service, project: int, form: ConfigureForm, params: FineTuneParams
) -> Response:
    try:
        job = service.jobs.start(project, params, form.dataset_id, idempotency_key=form.key or None)
    except ServiceRefusal as refusal:
        if refusal.code == TOO_LONG:  # the form asks what to do with them
            return _form(request, service, replace(form, project=project), refusal)
        raise
    return go(request, f"/fine-tunes/{job.id}")


@router.post("/demo")
def start_demo(request: Request, service: Served, sent: Sent) -> Response:
    """Start a short fine-tune with the demo dataset and without a judge, on a small model that is here."""
    form = ConfigureForm.read(sent)
    project = project_or_first(request, service, form.project)
    model = DEMO_MODEL if service.choices.is_here(DEMO_MODEL) else service.choices.in_place_of_the_default()
    params = FineTuneParams(use_llm_judge=False, base_model_name=model, n_trials=FEWEST_TRIALS)
    job = service.jobs.start(project, params, DEMO_DATASET, idempotency_key=form.key or None)
    return go(request, f"/fine-tunes/{job.id}")


@router.get("/estimate")
def estimate(request: Request, service: Served) -> Response:
    """Roughly what the form's fine-tune would take."""
    return render(request, "_estimate.html", _estimated(request, service, ConfigureForm.read(request.query_params)))


@router.get("/fit")
def fit(request: Request, service: Served) -> Response:
    """Whether the rows fit the model, and what can be done with those that do not."""
    form = ConfigureForm.read(request.query_params)
    return render(request, "_fit.html", {"form": form, **_fitted(request, service, form)})


def quick_hint(request: Request, service: Service, dataset: str | None) -> str:
    """What the quick start will do, in one line; `dataset` is the name of the newest one, None is the demo dataset."""
    words = words_of(request)
    judge = next((judge for judge in service.choices.judges() if judge.is_default and judge.is_configured), None)
    data = words("dataset.demo") if dataset is None else plain(dataset)
    if judge is None:
        return words("list.quick.nojudge", n=NO_PARAMS.n_trials, data=data)
    return words("list.quick.hint", n=NO_PARAMS.n_trials, judge=judge.id, data=data)


def _form(request: Request, service: Service, form: ConfigureForm, refusal: ServiceRefusal | None = None) -> Response:
    judges, problem = service.choices.judges(), None
    if refusal is not None:
        problem = _problem(request, refusal) or words_of(request)("configure.refused")
    is_own_message = refusal is not None and refusal.code in (BAD_TRIALS, TOO_LONG, NO_DATASET)
    has_bad_trials = refusal is not None and refusal.code == BAD_TRIALS
    data = data_values(service, form.project, form.dataset)
    form = replace(form, dataset=data["chosen_dataset"])
    values = {
        **data,
        "form": form,
        "judges": judges,
        "default_judge": next((judge.id for judge in judges if judge.is_default), ""),
        "models": service.choices.models(),
        "upload_path": f"/projects/{'first' if form.project is None else form.project}/datasets",
        "in_dialog": is_fragment(request),
        "is_first": service.jobs.is_empty(),
        "problem": problem,
        "detail": refusal.detail if refusal and not is_own_message else None,
        "has_bad_trials": has_bad_trials,
        **TRIALS,
        **_estimated(request, service, form),
    }
    # What was just measured is shown at once; else the page asks for it.
    is_long = refusal is not None and refusal.code == TOO_LONG
    values |= _fitted(request, service, form) if is_long else {"fit": None, "fit_problem": None, "fit_pending": True}
    template = "_configure.html" if is_fragment(request) else "configure.html"
    return render(request, template, values, refusal.status_code if refusal else 200)


def _fitted(request: Request, service: Service, form: ConfigureForm) -> dict[str, Any]:
    lengths, problem = None, None
    try:
        lengths = service.jobs.lengths(form.project, replace(form.params(), n_trials=FEWEST_TRIALS), form.dataset_id)
    except ServiceRefusal as refusal:
        # The estimate and the start say what else is wrong.
        problem = _problem(request, refusal) or str(refusal) if refusal.code == BAD_ROWS else None
    return {"fit": lengths, "fit_problem": problem, "fit_pending": False}


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
