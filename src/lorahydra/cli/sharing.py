"""What several commands share: an option, the log, and tables of plain text."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import click

from lorahydra.names import STUDY_STORE

__all__ = ["log_to_terminal", "show_table", "storage_option", "table_lines", "uri_option"]

uri_option = click.option(
    "--uri", metavar="URI", help="Address of the MLflow store [default: MLFLOW_TRACKING_URI, or ./mlflow.db]."
)

storage_option = click.option(
    "--storage",
    metavar="URL",
    default=STUDY_STORE,
    show_default=True,
    help="Store of the studies: hydra.sweeper.storage.",
)


def log_to_terminal() -> None:
    """Show INFO lines as `train.py` does, in commands that Hydra does not set up."""
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s][%(name)s][%(levelname)s] - %(message)s")


def show_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows, the first of which is the header, in aligned columns."""
    for line in table_lines(rows):
        click.echo(line)


def table_lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows, the first of which is the header, as lines of aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
