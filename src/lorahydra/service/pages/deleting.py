"""Pages that delete: first what would go and how much space it takes, then the button."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from lorahydra.service.api import Number, Served
from lorahydra.service.errors import ServiceRefusal
from lorahydra.service.pages.forms import Sent
from lorahydra.service.pages.rendering import go, is_fragment, render, words_of
from lorahydra.service.service import Service
from lorahydra.service.views import DeletionPlan, Kind

__all__ = ["router"]

FOLDERS = {Kind.PROJECT: "projects", Kind.DATASET: "datasets", Kind.FINE_TUNE: "fine-tunes"}
"""First part of the addresses of each kind's pages."""

router = APIRouter(include_in_schema=False, default_response_class=Response)


@router.get("/projects/{number}/delete")
def ask_project(request: Request, number: Number, service: Served) -> Response:
    """Ask whether to delete a project."""
    return _ask(request, service.deletions.plan(Kind.PROJECT, number))


@router.post("/projects/{number}/delete")
def delete_project(request: Request, number: Number, service: Served, sent: Sent) -> Response:
    """Delete a project."""
    return _delete(request, service, Kind.PROJECT, number, sent)


@router.get("/datasets/{number}/delete")
def ask_dataset(request: Request, number: Number, service: Served) -> Response:
    """Ask whether to delete a dataset."""
    return _ask(request, service.deletions.plan(Kind.DATASET, number))


@router.post("/datasets/{number}/delete")
def delete_dataset(request: Request, number: Number, service: Served, sent: Sent) -> Response:
    """Delete a dataset."""
    return _delete(request, service, Kind.DATASET, number, sent)


@router.get("/fine-tunes/{number}/delete")
def ask_fine_tune(request: Request, number: Number, service: Served) -> Response:
    """Ask whether to delete a fine-tune."""
    return _ask(request, service.deletions.plan(Kind.FINE_TUNE, number))


@router.post("/fine-tunes/{number}/delete")
def delete_fine_tune(request: Request, number: Number, service: Served, sent: Sent) -> Response:
    """Delete a fine-tune."""
    return _delete(request, service, Kind.FINE_TUNE, number, sent)


@router.get("/deletions/{number}")
def deletion_page(request: Request, number: Number, service: Served) -> Response:
    """How far a deletion is."""
    deletion = service.deletions.get(number)
    values = {"deletion": deletion, "back": "/" if deletion.kind is Kind.PROJECT else f"/projects/{deletion.project}"}
    return render(request, "_deletion.html" if is_fragment(request) else "deletion.html", values)


def _ask(request: Request, plan: DeletionPlan, refusal: ServiceRefusal | None = None) -> Response:
    values = {
        "plan": plan,
        "back": f"/{FOLDERS[plan.kind]}/{plan.id}",
        "problem": None if refusal is None else words_of(request)(f"refusal.{refusal.code}"),
    }
    return render(request, "delete.html", values, 200 if refusal is None else refusal.status_code)


def _delete(request: Request, service: Service, kind: Kind, number: int, sent: Any) -> Response:
    # The page has named all fine-tunes that go; if there are others by now, the digest is another one.
    options = {"keep_runs": kind is Kind.FINE_TUNE and bool(sent.get("keep_runs")), "with_fine_tunes": True}
    try:
        deletion = service.deletions.delete(kind, number, **options, digest=str(sent.get("digest", "")))
    except ServiceRefusal as refusal:
        if refusal.status_code != 409:
            raise
        return _ask(request, service.deletions.plan(kind, number), refusal)
    return go(request, f"/deletions/{deletion.id}")
