"""`lorahydra`: the command line beside `train.py`."""

from __future__ import annotations

import sys

import click

from lorahydra import __version__
from lorahydra.cli.data import data
from lorahydra.cli.evaluate import evaluate
from lorahydra.cli.exits import exit_codes
from lorahydra.cli.export import export
from lorahydra.cli.generate import generate
from lorahydra.cli.judges import judges
from lorahydra.cli.models import models
from lorahydra.cli.push import push
from lorahydra.cli.reproduce import reproduce
from lorahydra.cli.serve import serve
from lorahydra.cli.studies import studies
from lorahydra.cli.sync import sync
from lorahydra.cli.ui import ui
from lorahydra.errors import UserError
from lorahydra.utils.interrupts import listen, stop_listening

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="lorahydra")
def commands() -> None:
    """Find the best LoRA adapter for your data.

    `lorahydra train` takes Hydra overrides, as train.py does; the other commands look at data, judges and results.
    """


@commands.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    short_help="Train one adapter, or search for the best with -m.",
)
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
def train(overrides: tuple[str, ...]) -> None:
    """Train and evaluate one adapter; takes Hydra overrides and options, as train.py does."""
    from lorahydra.cli.hydra_app import train_command

    train_command(list(overrides))


for command in (data, evaluate, export, generate, judges, models, push, reproduce, serve, studies, sync, ui):
    commands.add_command(command)


def main() -> None:
    """Run the command line, and exit with its code."""
    listen(str)
    try:
        code = _run()
    finally:
        stop_listening()
    sys.exit(code)


def _run() -> int:
    with exit_codes():
        try:
            code = commands(prog_name="lorahydra", standalone_mode=False)
        except click.Abort:
            raise KeyboardInterrupt from None
        except click.exceptions.NoArgsIsHelpError as error:
            # A group without a command prints its help to stderr and exits with 2, as everywhere in click.
            error.show()
            sys.exit(error.exit_code)
        except click.UsageError as error:
            command = "lorahydra" if error.ctx is None else error.ctx.command_path
            raise UserError(f"{error.format_message()} (see {command} --help)") from error
    return code if isinstance(code, int) else 0
