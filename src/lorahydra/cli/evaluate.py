"""`lorahydra evaluate`: score an adapter that is there already."""

from __future__ import annotations

import dataclasses
import json
from datetime import datetime
from pathlib import Path

import click

from lorahydra.cli.logs import log_to_terminal
from lorahydra.config.compose import compose, literal
from lorahydra.errors import ModelError

__all__ = ["evaluate"]


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("adapter", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
def evaluate(adapter: Path, overrides: tuple[str, ...]) -> None:
    """Score the adapter in the folder ADAPTER beside its base model, on the test split of the data.

    OVERRIDES are those of train.py, for example data=local data.train_file=my.jsonl judge=gemini. The base model is
    the one that the adapter names, unless they name another.
    """
    given = list(overrides)
    if not any(override.partition("=")[0].lstrip("+") in ("model", "model.name_or_path") for override in given):
        given.insert(0, f"model.name_or_path={literal(_base_of(adapter))}")
    config = compose(given)
    folder = Path("outputs") / f"evaluated-{datetime.now():%Y%m%d-%H%M%S-%f}"
    log_to_terminal()
    # Imported here: torch takes seconds, and a typo in a key should not.
    from lorahydra.evaluating import evaluate_adapter

    evaluate_adapter(dataclasses.replace(config, output_dir=str(folder)), adapter, overrides=given)


def _base_of(adapter: Path) -> str:
    """The base model that an adapter's own configuration names."""
    try:
        settings = json.loads((adapter / "adapter_config.json").read_text("utf-8"))
        return str(settings["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{adapter} is not the folder of an adapter: its adapter_config.json cannot be read"
        ) from error
