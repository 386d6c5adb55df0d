"""Pages about what comes after a fine-tune: more trials, and a comparison with another one."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from lorahydra.service.api import Number, Served
from lorahydra.service.bodies import LARGEST
from lorahydra.service.errors import ServiceRefusal
from lorahydra.service.pages.forms import Sent, whole_number
from lorahydra.service.pages.rendering import go, render, words_of
from lorahydra.service.planning import MOST_TRIALS
from lorahydra.service.rows import MOST
from lorahydra.service.service import Service

__all__ = ["router"]

MORE = 10
"""Number of trials that the form proposes beyond those that there are."""
BAD_TRIALS = ("bad_more_trials", "not_ended")
Chosen = Annotated[int | None, Query(ge=1, le=LARGEST)]

router = APIRouter(include_in_schema=False, default_response_class=Response)


@router.get("/fine-tunes/{job_id}/continue")
def ask_continue(request: Request, job_id: Number, service: Served, trials: str | None = None) -> Response:
    """Ask how many trials there shall be, and say what they will take."""
    return _ask(request, service, job_id, trials)


@router.get("/fine-tunes/{job_id}/continue/estimate")
def estimate_continue(request: Request, job_id: Number, service: Served, trials: str | None = None) -> Response:
    """Roughly what that many trials will take."""
    return render(request, "_estimate.html", _estimated(request, service, job_id, trials))


@router.post("/fine-tunes/{job_id}/continue")
def continue_with_more(request: Request, job_id: Number, service: Served, sent: Sent) -> Response:
    """Go on with more trials; with the other button, only estimate them."""
    trials = str(sent.get("trials", ""))
    if sent.get("action") == "estimate":
        return _ask(request, service, job_id, trials)
    try:
        service.jobs.more(job_id, whole_number(trials) or 0)
    except ServiceRefusal as refusal:
        if refusal.code not in BAD_TRIALS:
            raise
        return _ask(request, service, job_id, trials, refusal)
    return go(request, f"/fine-tunes/{job_id}")


@router.get("/compare")
def compare(request: Request, service: Served, first: Chosen = None, second: Chosen = None) -> Response:
    """Two fine-tunes side by side."""
    shown = None if first is None or second is None or first == second else service.comparisons.compare(first, second)
    # Those that a link names may be older than the newest ones, among which can be chosen.
    jobs = {job.id: job for job in service.jobs.page(limit=MOST).items}
    jobs |= {} if shown is None else {job.id: job for job in (shown.first, shown.second)}
    if first is not None:
        jobs.setdefault(first, service.jobs.get(first))
    values = {"jobs": list(jobs.values()), "first": first, "second": second, "comparison": shown}
    return render(request, "compare.html", values)


def _ask(
    request: Request, service: Service, job_id: int, trials: str | None, refusal: ServiceRefusal | None = None
) -> Response:
    job = service.jobs.get(job_id)
    proposed = str(min(MOST_TRIALS, job.trials_wanted + MORE))
    estimated = _estimated(request, service, job_id, proposed if trials is None else trials)
    values = {
        "job": job,
        "trials": trials or proposed,
        "most": MOST_TRIALS,
        "is_refused": refusal is not None,
        **estimated,
    }
    return render(request, "continue.html", values, 200 if refusal is None else refusal.status_code)


def _estimated(request: Request, service: Service, job_id: int, trials: str | None) -> dict[str, Any]:
    words, address = words_of(request), f"/fine-tunes/{job_id}/continue/estimate"
    try:
        estimate = service.jobs.estimate_more(job_id, whole_number(trials) or 0)
        return {"estimate": estimate, "estimate_address": address}
    except ServiceRefusal as refusal:
        job, known = service.jobs.get(job_id), refusal.code in BAD_TRIALS
        text = words(f"refusal.{refusal.code}", n=job.trials_wanted, most=MOST_TRIALS) if known else None
        problem = text or words.said(refusal.detail) or refusal.detail
        return {"estimate": None, "estimate_problem": problem, "estimate_address": address}
