"""Logs of commands that Hydra does not set up."""

from __future__ import annotations

import logging

__all__ = ["log_to_terminal"]


def log_to_terminal() -> None:
    """Show INFO lines as `train.py` does."""
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s][%(name)s][%(levelname)s] - %(message)s")
