"""`lorahydra`: the command line beside `train.py`."""

from __future__ import annotations

import click

from lorahydra import __version__
from lorahydra.cli.data import data
from lorahydra.cli.exits import exit_codes
from lorahydra.cli.models import models
from lorahydra.cli.sync import sync

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="lorahydra")
def commands() -> None:
    """Find the best LoRA adapter for your data."""


@commands.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    short_help="Train and evaluate one adapter, as train.py does.",
)
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
def train(overrides: tuple[str, ...]) -> None:
    """Train and evaluate one adapter; takes Hydra overrides and options, as train.py does."""
    from lorahydra.cli.hydra_app import train_command

    train_command(list(overrides))


for command in (data, models, sync):
    commands.add_command(command)


def main() -> None:
    """Run the command line."""
    with exit_codes():
        commands(prog_name="lorahydra")
