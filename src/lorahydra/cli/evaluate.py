"""`lorahydra evaluate`: score an adapter that already exists."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import click

from lorahydra.cli.completing import folders
from lorahydra.cli.sharing import log_to_terminal, uri_option
from lorahydra.config.compose import compose, literal
from lorahydra.config.schema import DataConfig

__all__ = ["evaluate"]


@click.command(
    context_settings={"ignore_unknown_options": True}, short_help="Score an adapter beside its base model on test data."
)
@click.argument("adapter", shell_complete=folders)
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
@uri_option
def evaluate(adapter: str, overrides: tuple[str, ...], uri: str | None) -> None:
    """Score ADAPTER beside its base model, on the test split of the data.

    ADAPTER is a folder, the id of an MLflow run, models:/NAME@ALIAS, or the name of a study or registered model.
    OVERRIDES are those of train.py, for example data=local data.train_file=my.jsonl judge=gemini. The base model is
    the one that the adapter names, unless OVERRIDES name another.
    """
    # Composed before the adapter is looked for, so that a typo in a key is reported even without a store.
    config = compose(overrides)
    has_store = any(override.partition("=")[0] == "tracking.uri" for override in overrides)
    from lorahydra.adapters.find import find_adapter

    with find_adapter(adapter, uri=uri or (config.tracking.uri if has_store else None)) as found_adapter:
        source = found_adapter.folder
        completed = _with_metadata(source, overrides)
        config = compose(completed)
        folder = Path("outputs") / f"evaluated-{datetime.now():%Y%m%d-%H%M%S-%f}"
        log_to_terminal()
        # Imported here: torch takes seconds, but a typo in a key should be reported at once.
        from lorahydra.trial.evaluate_adapter import evaluate_adapter

        evaluate_adapter(dataclasses.replace(config, output_dir=str(folder)), source, overrides=completed)


def _with_metadata(adapter: Path, overrides: Sequence[str]) -> list[str]:
    """The overrides, after those that the adapter's metadata adds for keys that the user does not set."""
    # Imported here: it is slow, but a typo in a command should be reported at once.
    from lorahydra.modeling.metadata import read_metadata

    metadata = read_metadata(adapter)
    keys = {override.partition("=")[0].lstrip("+") for override in overrides}
    added = []
    if "model" not in keys:
        # The same model in a new place: settings of the old place are dropped.
        moved = "model.name_or_path" in keys
        place = () if moved else ("name_or_path", "revision", "gguf_file")
        kept = [name for name in (*place, "quantization", "chat_template") if f"model.{name}" not in keys]
        stated = {name: getattr(metadata.model, name) for name in kept}
        added += [f"model.{name}={literal(value)}" for name, value in stated.items() if value is not None]
    if metadata.system_prompt is not None and "data.system_prompt" not in keys:
        added.append(f"data.system_prompt={literal(metadata.system_prompt)}")
    if metadata.special_tokens != DataConfig.special_tokens and "data.special_tokens" not in keys:
        added.append(f"data.special_tokens={metadata.special_tokens}")
    return [*added, *overrides]
