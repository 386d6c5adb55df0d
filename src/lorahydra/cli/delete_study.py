"""`lorahydra studies delete`: shows what goes, asks, and deletes a study with what it has recorded and written."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from lorahydra.cli.completing import study_names
from lorahydra.cli.sharing import storage_option, uri_option
from lorahydra.errors import StudyError

__all__ = ["delete"]

MIB = 1 << 20


@click.command("delete")
@click.argument("name", shell_complete=study_names)
@storage_option
@uri_option
@click.option("--keep-runs", is_flag=True, help="Keep its runs and its registered model in MLflow.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def delete(name: str, storage: str, uri: str | None, keep_runs: bool, yes: bool) -> None:
    """Delete study NAME with all that it has made.

    These are its trials, its runs in MLflow, its registered model and its output folder.

    Its data stays, as do cached rows and verdicts, which other studies may need.
    """
    from lorahydra.adapters.find import store_address
    from lorahydra.config.schema import TrackingConfig
    from lorahydra.sweep.catalog import find_study
    from lorahydra.sweep.deleting import delete_studies
    from lorahydra.tracking import StoredRuns, delete_runs, stored_runs
    from lorahydra.utils.files import remove, size_of

    entry = find_study(name, storage)
    if entry.alive:
        raise StudyError(
            f"study {name} is running: stop it first, with Ctrl-C or `lorahydra studies cancel {shlex.quote(name)}`"
        )
    store = TrackingConfig(uri=store_address(uri))
    recorded = StoredRuns() if keep_runs else stored_runs(store, [name])
    folder = None if entry.command is None else Path(entry.command["folder"])
    click.echo(f"Study {name}: {len(entry.trials)} trials")
    elsewhere = "" if recorded.run_ids or keep_runs else ": if they are in another store, name it with --uri"
    click.echo(f"Runs in {store.uri}: {len(recorded.run_ids)} ({recorded.size / MIB:.1f} MiB){elsewhere}")
    for model in recorded.models:
        click.echo(f"Registered model: {model}")
    if folder is not None and folder.name != name:
        click.echo(f"The folder {folder} stays: it does not have the study's name, so it may hold more")
        folder = None
    elif folder is not None:
        click.echo(f"Folder: {folder} ({size_of(folder) / MIB:.1f} MiB)")
    if not yes:
        click.confirm("Delete all of this? It cannot be undone", abort=True)
    delete_runs(store, [name] if recorded.run_ids else [])
    if folder is not None:
        remove(folder)
    delete_studies(storage, [name])  # last, because it says where the rest is
