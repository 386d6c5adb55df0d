"""Markdown for MLflow's pages: tables and links in which a value is shown as its text, whatever is in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["code", "experiment_link", "model_link", "run_link", "table"]


GAP = "\u00a0\u00a0\u00a0"
"""Spaces that Markdown keeps."""


def code(value: object) -> str:
    """A value as inline code, whatever is in it."""
    text = " ".join(str(value).split()).replace("`", "'").replace("|", "¦")
    return f"`{text}`" if text else "–"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table; cells are Markdown and hold neither line breaks nor `|`."""
    # MLflow's pages draw tables without any room between the columns.
    spaced = [[f"{cell}{GAP}" for cell in cells] for cells in (header, *rows)]
    lines = [spaced[0], ["---"] * len(header), *spaced[1:]]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def run_link(text: str, experiment_id: str, run_id: str) -> str:
    """A link to a run within MLflow's UI."""
    return f"[{text}](#/experiments/{experiment_id}/runs/{run_id})"


def experiment_link(text: str, experiment_id: str, query: str) -> str:
    """A link to the runs of an experiment within MLflow's UI."""
    return f"[{text}](#/experiments/{experiment_id}/runs?{query})"


def model_link(name: str, version: str) -> str:
    """A link to a version of a registered model within MLflow's UI."""
    return f"[{name}, version {version}](#/models/{name}/versions/{version})"
