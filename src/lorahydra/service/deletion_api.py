"""The part of the HTTP API that deletes, and says before what would go."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from lorahydra.service import views
from lorahydra.service.addresses import API
from lorahydra.service.api import ALWAYS, Number, Served, refusals
from lorahydra.service.views import Kind

__all__ = ["router"]

Digest = Annotated[
    str | None,
    Query(
        pattern=r"^[0-9a-f]{16}$",
        description="`digest` of the plan that was shown: if other things would go by now, nothing is deleted.",
    ),
]
WithFineTunes = Annotated[bool, Query(description="Also delete the fine-tunes that use the dataset.")]
KeepRuns = Annotated[
    bool,
    Query(description="Keep its runs in MLflow and its registered model until its dataset or project is deleted."),
]

router = APIRouter(prefix=API, responses=refusals(*ALWAYS))


@router.get("/projects/{project_id:int}/deletion", responses=refusals(404))
def plan_project_deletion(project_id: Number, service: Served) -> views.DeletionPlan:
    """What the deletion of a project would take with it; nothing is deleted."""
    return service.deletions.plan(Kind.PROJECT, project_id)


@router.delete("/projects/{project_id:int}", status_code=202, responses=refusals(404, 409))
def delete_project(project_id: Number, service: Served, digest: Digest = None) -> views.DeletionView:
    """Delete a project with its datasets, its fine-tunes and their runs in MLflow."""
    return service.deletions.delete(Kind.PROJECT, project_id, digest=digest)


@router.get("/datasets/{dataset_id:int}/deletion", responses=refusals(404))
def plan_dataset_deletion(dataset_id: Number, service: Served) -> views.DeletionPlan:
    """What the deletion of a dataset would take with it, such as the fine-tunes that use it; nothing is deleted."""
    return service.deletions.plan(Kind.DATASET, dataset_id)


@router.delete("/datasets/{dataset_id:int}", status_code=202, responses=refusals(404, 409))
def delete_dataset(
    dataset_id: Number, service: Served, digest: Digest = None, with_fine_tunes: WithFineTunes = False
) -> views.DeletionView:
    """Delete a dataset; it is refused while fine-tunes use it, unless they go with it."""
    return service.deletions.delete(Kind.DATASET, dataset_id, digest=digest, with_fine_tunes=with_fine_tunes)


@router.get("/fine-tunes/{job_id:int}/deletion", responses=refusals(404))
def plan_fine_tune_deletion(job_id: Number, service: Served) -> views.DeletionPlan:
    """What the deletion of a fine-tune would take with it; nothing is deleted."""
    return service.deletions.plan(Kind.FINE_TUNE, job_id)


@router.delete("/fine-tunes/{job_id:int}", status_code=202, responses=refusals(404, 409))
def delete_fine_tune(
    job_id: Number, service: Served, digest: Digest = None, keep_runs: KeepRuns = False
) -> views.DeletionView:
    """Delete a fine-tune that is not running, with its runs in MLflow and its registered model."""
    return service.deletions.delete(Kind.FINE_TUNE, job_id, digest=digest, keep_runs=keep_runs)


@router.get("/deletions/{deletion_id:int}", responses=refusals(404))
def get_deletion(deletion_id: Number, service: Served) -> views.DeletionView:
    """How far a deletion is: when it has ended, nothing is left of what was deleted."""
    return service.deletions.get(deletion_id)
