"""`lorahydra sync`: send logged data to MLflow that could not be sent at the time."""

from __future__ import annotations

from pathlib import Path

import click

from lorahydra.errors import LorahydraError, OutputError
from lorahydra.tracking import SyncResult, find_unsent
from lorahydra.tracking import sync as send

__all__ = ["sync"]

USUAL_FOLDERS = (Path("outputs"), Path("multirun"))


@click.command(short_help="Send logged data to MLflow that could not be sent before.")
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path), metavar="[DIR]...")
@click.option("--uri", metavar="URI", help="Address of the MLflow store, if it has moved.")
def sync(folders: tuple[Path, ...], uri: str | None) -> None:
    """Send logged data to MLflow that could not be sent at the time.

    DIR is the output folder of a trial, or one that holds several; ./outputs and ./multirun by default. Runs
    whose process died are closed as interrupted. Runs that are still in progress are left alone.
    """
    for folder in folders:
        if not folder.is_dir():
            raise OutputError(f"the folder {folder} does not exist: give the output folder of a trial")
    errors: list[LorahydraError] = []
    unsent = False
    for folder in folders or USUAL_FOLDERS:
        for output_dir in dict.fromkeys(spool.parent.parent for spool in find_unsent(folder)):
            unsent = True
            try:
                _report(send(output_dir, uri))
            except LorahydraError as error:
                errors.append(error)
    if not unsent:
        click.echo(f"Nothing to send in {', '.join(map(str, folders or USUAL_FOLDERS))}.")
    for earlier in errors[:-1]:
        click.echo(f"Error: {earlier}", err=True)
    if errors:
        raise errors[-1]


def _report(result: SyncResult) -> None:
    for run in result.runs:
        end = ", closed as interrupted" if run.interrupted else ""
        click.echo(f"Sent {run.entries} entries of run {run.run_name} ({run.run_id}) to {run.store}{end}.")
    for folder in result.busy:
        click.echo(f"{folder}: the run is still in progress and sends its data itself.")
