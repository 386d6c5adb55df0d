"""`lorahydra data preview`: the first examples as the model will see them, with the tokens that carry loss marked."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import takewhile
from typing import TYPE_CHECKING

import click

from lorahydra.cli.completing import files, packaged_names
from lorahydra.cli.showing import printable
from lorahydra.errors import DataError

if TYPE_CHECKING:
    from lorahydra.config.schema import ExperimentConfig
    from lorahydra.data.previews import Part, Preview

__all__ = ["preview"]

OPENING, CLOSING = "⟦", "⟧"
"""Around tokens that carry loss, where there are no colours."""
COLOUR = "green"


@click.command(short_help="Show examples as the model sees them.")
@click.argument("overrides", metavar="[FILE]... [OVERRIDES]...", nargs=-1, shell_complete=files)
@click.option("-n", "count", type=click.IntRange(1), default=3, show_default=True, help="Number of examples.")
@click.option("--split", default="train", show_default=True, type=click.Choice(["train", "validation", "test"]))
@click.option("--model", metavar="NAME", shell_complete=packaged_names, help="The model (model.name_or_path).")
@click.option("--json", "as_json", is_flag=True, help="Print the examples as JSON, with their tokens.")
def preview(overrides: tuple[str, ...], count: int, split: str, model: str | None, as_json: bool) -> None:
    """Show the first examples of a split as the model will see them.

    This is the text that the chat template makes of each. Tokens that carry loss are coloured, or between ⟦ and ⟧ where
    there are no colours. Only the tokenizer of the model is read. OVERRIDES are keys of train.py, for example
    data.max_length=512; FILE stands for data=local data.train_file=FILE; several are trained on together.
    """
    from lorahydra.config.compose import compose

    config = compose(_overrides(overrides, model))
    shown = _examples(config, split, count)
    if as_json:
        click.echo(json.dumps([asdict(entry) for entry in shown], ensure_ascii=False, indent=2))
        return
    in_colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    for number, entry in enumerate(shown, start=1):
        click.echo(click.style(printable(_title(entry, f"{split} {number}", config), terminal=True), bold=in_colour))
        for name, parts in (("chosen", entry.parts), ("rejected", entry.rejected)):
            if entry.rejected:
                click.echo(click.style(f"{name}:", bold=in_colour))
            if parts:
                click.echo("".join(_marked(part, in_colour) for part in parts))
        for warning in entry.warnings:
            click.echo(f"warning: such rows {warning}")
        if number < len(shown):
            click.echo()


def _overrides(given: Sequence[str], model: str | None) -> list[str]:
    """The overrides, with those that files and a model stand for."""
    from lorahydra.config.compose import literal

    named = list(takewhile(lambda argument: "=" not in argument and not argument.startswith("~"), given))
    overrides = list(given[len(named) :])
    if named:
        overrides[:0] = ["data=local", f"data.train_file=[{','.join(map(literal, named))}]"]
    return overrides if model is None else [*overrides, f"model.name_or_path={literal(model)}"]


def _examples(config: ExperimentConfig, name: str, count: int) -> list[Preview]:
    from lorahydra.data import ChatFormat, load_splits
    from lorahydra.data.previews import Limits, preview
    from lorahydra.modeling.base import load_context_window, load_tokenizer

    split = next((split for split in load_splits(config.data, config.seed) if split.name == name), None)
    if split is None:
        raise DataError(f"there is no {name} split: give data.{name}_file, or set data.{name}_fraction above 0")
    chat = ChatFormat(
        load_tokenizer(config.model),
        chat_template=config.model.chat_template,
        system_prompt=config.data.system_prompt,
        special_tokens=config.data.special_tokens,
    )
    room = 0 if name == "train" else config.evaluation.max_new_tokens
    limits = Limits(config.data.max_length, config.data.overlong, load_context_window(config.model), room)
    return preview(split, chat, count, limits)


def _title(entry: Preview, name: str, config: ExperimentConfig) -> str:
    title = f"{name} ({entry.source}:{entry.line}): {entry.tokens} tokens, {entry.loss_tokens} with loss"
    if entry.fault:
        what = "refused" if config.data.overlong == "error" else "left out"
        return f"{title}; {what}: {entry.fault}"
    return f"{title}; the last {entry.cut} are cut" if entry.cut else title


def _marked(part: Part, in_colour: bool) -> str:
    """The text of a part, in which neither control characters nor marks are left."""
    text = printable(part.text, terminal=True)
    if in_colour:
        return click.style(text, fg=COLOUR) if part.loss else text
    for mark in (OPENING, CLOSING):
        text = text.replace(mark, mark.encode("unicode_escape").decode())
    return f"{OPENING}{text}{CLOSING}" if part.loss else text
