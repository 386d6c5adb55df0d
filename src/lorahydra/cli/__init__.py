"""The `lorahydra` command and what it shares with `train.py`."""

from lorahydra.cli.commands import main

__all__ = ["main"]
