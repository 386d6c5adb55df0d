"""The part of the HTTP API about what comes after a fine-tune: more trials, and a comparison with another one."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from lorahydra.service import views
from lorahydra.service.addresses import API
from lorahydra.service.api import ALWAYS, Number, Served, refusals
from lorahydra.service.bodies import MoreBody
from lorahydra.service.planning import FEWEST_TRIALS, MOST_TRIALS

__all__ = ["router"]

Trials = Annotated[
    int, Query(gt=FEWEST_TRIALS, le=MOST_TRIALS, description="Number of trials in all, more than there are.")
]

router = APIRouter(prefix=API, responses=refusals(*ALWAYS))


@router.post("/fine-tunes/{job_id:int}/continue", status_code=202, responses=refusals(404, 409, 415, 429))
def continue_fine_tune(job_id: Number, body: MoreBody, service: Served) -> views.JobView:
    """Queue a fine-tune that has ended again, to go on with more trials; its study and its rules stay the same."""
    return service.jobs.more(job_id, body.n_trials)


@router.get("/fine-tunes/{job_id:int}/continue/estimate", responses=refusals(404, 409))
def estimate_continuation(job_id: Number, n_trials: Trials, service: Served) -> views.Estimate:
    """Roughly what these trials will take beyond those that there are; nothing is started."""
    return service.jobs.estimate_more(job_id, n_trials)


@router.get("/fine-tunes/{job_id:int}/comparison/{other_id:int}", responses=refusals(404))
def compare_fine_tunes(job_id: Number, other_id: Number, service: Served) -> views.ComparisonView:
    """Two fine-tunes side by side, with a verdict if they were tested and scored in the same way."""
    return service.comparisons.compare(job_id, other_id)
