"""The option by which commands name the MLflow store that they read."""

from __future__ import annotations

import click

__all__ = ["uri_option"]

uri_option = click.option(
    "--uri", metavar="URI", help="Address of the MLflow store [default: MLFLOW_TRACKING_URI, or ./mlflow.db]."
)
