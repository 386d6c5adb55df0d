"""`lorahydra studies …`: list the studies of a database, show, cancel, resume and delete one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lorahydra.cli.completing import study_names
from lorahydra.cli.delete_study import delete
from lorahydra.cli.sharing import show_table, storage_option
from lorahydra.errors import StudyError
from lorahydra.names import State

if TYPE_CHECKING:
    from lorahydra.sweep.catalog import StudyEntry

__all__ = ["studies"]


@click.group(short_help="List, show, cancel, resume and delete studies.")
def studies() -> None:
    """Studies: searches that `train.py -m` began."""


studies.add_command(delete)


@studies.command("list")
@storage_option
def list_studies(storage: str) -> None:
    """Show the studies of a store, the newest first."""
    from lorahydra.sweep.catalog import list_studies as entries_of

    show_table([("NAME", "STATE", "TRIALS", "BEST", "BEGUN"), *(_row(entry) for entry in entries_of(storage))])


def _row(entry: StudyEntry) -> tuple[str, str, str, str, str]:
    best = entry.best
    score = "-" if best is None or best.values is None else f"{entry.objectives[0]} {best.values[0]:.4f}"
    begun = "-" if entry.begun is None else entry.begun.strftime("%Y-%m-%d %H:%M")
    return entry.name, entry.state, _progress(entry), score, begun


def _progress(entry: StudyEntry) -> str:
    return f"{entry.finished}" if entry.n_trials is None else f"{entry.finished} of {entry.n_trials}"


@studies.command("show")
@click.argument("name", shell_complete=study_names)
@storage_option
def show(name: str, storage: str) -> None:
    """Show the trials of study NAME, best first."""
    from lorahydra.sweep.catalog import find_study
    from lorahydra.sweep.leaderboard import write_leaderboard
    from lorahydra.utils.progress import console

    entry = find_study(name, storage)
    screen = console()
    screen.print(f"Study {entry.name}: {entry.state}, {_progress(entry)} trials", highlight=False, soft_wrap=True)
    write_leaderboard(screen, entry.leaderboard, entry.directions, entry.objectives)
    if entry.ended_early is not None:
        screen.print(f"It ended {entry.ended_early}.", highlight=False, soft_wrap=True)
    if entry.choice is not None:
        screen.print(entry.choice.sentences, highlight=False, soft_wrap=True)
    if entry.command is not None:
        screen.print(f"Folder: {entry.command['folder']}", highlight=False, soft_wrap=True)


@studies.command("cancel")
@click.argument("name", shell_complete=study_names)
@storage_option
def cancel(name: str, storage: str) -> None:
    """End all processes of study NAME, on whatever machine they are.

    They give their trials back as after Ctrl-C, so the study can be resumed.
    """
    from lorahydra.sweep.catalog import cancel_study
    from lorahydra.sweep.study_store import resume_command

    entry = cancel_study(name, storage)
    if entry.has_ended:
        raise StudyError(f"study {name} has ended")
    running = sum(trial.state is State.RUNNING for trial in entry.trials)
    click.echo(
        f"Study {name} is cancelled: its processes end within seconds ({running} trials are given back), and workers "
        f"that wait in a queue end when they start. Go on with: {resume_command(name, storage)}"
    )


@studies.command("resume", context_settings={"ignore_unknown_options": True})
@click.argument("name", shell_complete=study_names)
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
@storage_option
def resume(name: str, overrides: tuple[str, ...], storage: str) -> None:
    """Resume study NAME where it stopped.

    OVERRIDES are added to those it was begun with, for example hydra.sweeper.n_trials=40 for more trials.
    """
    from lorahydra.cli.hydra_app import train_command
    from lorahydra.config.showing import HIDDEN
    from lorahydra.sweep.catalog import find_study
    from lorahydra.utils.databases import absolute

    entry = find_study(name, storage)
    if entry.command is None:
        raise StudyError(
            f"study {name} was not begun by lorahydra: to go on with it, start its program with the same study name"
        )
    given = [override for override in entry.command["overrides"] if not override.endswith(HIDDEN)]
    is_given = any(override.lstrip("+").startswith("tracking.uri=") for override in overrides)
    if len(given) < len(entry.command["overrides"]) and not is_given:
        raise StudyError(
            f"study {name} was begun with an address of MLflow's store that may hold a password, so it was not kept: "
            "give it again (tracking.uri=…)"
        )
    if entry.n_trials is not None:
        given.append(f"hydra.sweeper.n_trials={entry.n_trials}")
    given += [f"hydra.sweeper.storage='{absolute(storage)}'", f"study='{name}'"]
    for variable in [name for name in os.environ if name.startswith("LORA_")]:
        del os.environ[variable]
    os.environ.update(entry.command.get("environment", {}))
    folder = Path(entry.command["cwd"])  # the study's relative paths begin there
    if folder.is_dir():
        os.chdir(folder)
    else:
        click.echo(
            f"The study was begun in {folder}, which does not exist any more: relative paths are taken from here.",
            err=True,
        )
    train_command(["-m", *given, *overrides])
