"""`lorahydra evaluate`: score an adapter that is there already."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import click

from lorahydra.cli.logs import log_to_terminal
from lorahydra.config.compose import compose, literal

__all__ = ["evaluate"]


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("adapter", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
def evaluate(adapter: Path, overrides: tuple[str, ...]) -> None:
    """Score the adapter in the folder ADAPTER beside its base model, on the test split of the data.

    OVERRIDES are those of train.py, for example data=local data.train_file=my.jsonl judge=gemini. The base model is
    the one that the adapter names, unless they name another.
    """
    given = _of_adapter(adapter, overrides)
    config = compose(given)
    folder = Path("outputs") / f"evaluated-{datetime.now():%Y%m%d-%H%M%S-%f}"
    log_to_terminal()
    # Imported here: torch takes seconds, and a typo in a key should not.
    from lorahydra.evaluating import evaluate_adapter

    evaluate_adapter(dataclasses.replace(config, output_dir=str(folder)), adapter, overrides=given)


def _of_adapter(adapter: Path, overrides: Sequence[str]) -> list[str]:
    """The overrides, and before them what the adapter belongs to where they say nothing else."""
    # Imported here: it needs more than a typo in a command should wait for.
    from lorahydra.modeling.origin import read_origin

    origin = read_origin(adapter)
    keys = {override.partition("=")[0].lstrip("+") for override in overrides}
    own = []
    if not keys & {"model", "model.name_or_path"}:
        own.append(f"model.name_or_path={literal(origin.model.name_or_path)}")
    if origin.system_prompt is not None and "data.system_prompt" not in keys:
        own.append(f"data.system_prompt={literal(origin.system_prompt)}")
    return [*own, *overrides]
