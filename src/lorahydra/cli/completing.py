"""Completions that a shell offers for the arguments of `lorahydra`: judges, packaged models, studies, files."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import click
from click.shell_completion import CompletionItem

from lorahydra.config.judge_registry import choosable_judges
from lorahydra.errors import LorahydraError
from lorahydra.modeling.packaged import PACKAGED
from lorahydra.names import STUDY_STORE

__all__ = ["files", "folders", "judge_names", "packaged_names", "study_names"]

Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def files(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Files and folders, which the shell completes itself."""
    return [CompletionItem(incomplete, type="file")]


def folders(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Folders, which the shell completes itself."""
    return [CompletionItem(incomplete, type="dir")]


def _names(names: Callable[[click.Context], Iterable[str]]) -> Completer:
    def complete(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        try:
            return [CompletionItem(name) for name in names(context) if name.startswith(incomplete)]
        except LorahydraError:  # there is no store, so there is nothing to offer
            return []

    return complete


def _studies(context: click.Context) -> Iterable[str]:
    from lorahydra.sweep.catalog import list_studies

    return [entry.name for entry in list_studies(context.params.get("storage") or STUDY_STORE)]


judge_names = _names(lambda _: choosable_judges())
packaged_names = _names(lambda _: PACKAGED)
study_names = _names(_studies)
