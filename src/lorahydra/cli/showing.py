"""Answers on stdout: as text, side by side, or as JSON lines."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lorahydra.utils.files import atomic_file

if TYPE_CHECKING:
    from lorahydra.data.examples import Message

__all__ = ["Answered", "json_line", "note", "printable", "prompt_text", "show_answers", "write_lines"]


Answered = Mapping[str, str]
"""A `prompt`, its `answer`, and with `--compare` the `base_answer`, as they are written to JSON lines."""


def json_line(entry: Answered) -> str:
    """A prompt and its answers as one line of JSON."""
    return json.dumps(entry, ensure_ascii=False)


def note(text: str) -> None:
    """Print a line that is not an answer, to stderr."""
    click.echo(printable(text, sys.stderr.isatty()), err=True)


def printable(text: str, terminal: bool | None = None) -> str:
    """Text of a model or a file; on a `terminal` (by default, if stdout is one) control characters are escaped."""
    if not (sys.stdout.isatty() if terminal is None else terminal):
        return text
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else letter.encode("unicode_escape").decode()
        for letter in text
    )


def prompt_text(conversation: Sequence[Message]) -> str:
    """A conversation for people: the question alone, or all turns with their roles."""
    if len(conversation) == 1:
        return conversation[0].content
    return "\n".join(f"{message.role}: {message.content}" for message in conversation)


def write_lines(answered: Sequence[Answered], file: Path) -> None:
    """Write answers as JSON lines, as a whole or not at all."""
    with atomic_file(file) as temporary:
        temporary.write_text("".join(f"{json_line(entry)}\n" for entry in answered), "utf-8")


def show_answers(answered: Sequence[Answered]) -> None:
    """Print answers; base model and adapter side by side if both have answered."""
    if any("base_answer" in entry for entry in answered):
        _show_table(answered)
        return
    for number, entry in enumerate(answered):
        if len(answered) > 1:
            note(f"{chr(10) if number else ''}> {entry['prompt']}")
        click.echo(printable(entry["answer"]))


def _show_table(answered: Sequence[Answered]) -> None:
    from rich.table import Table
    from rich.text import Text

    from lorahydra.utils.progress import console

    several = len(answered) > 1
    table = Table(show_lines=several)
    for name in (*(["prompt"] if several else []), "untuned", "tuned"):
        table.add_column(name, ratio=1, overflow="fold")
    for entry in answered:
        cells = (*([entry["prompt"]] if several else []), entry["base_answer"], entry["answer"])
        # As text, so that brackets in an answer are not taken for markup.
        table.add_row(*(Text(printable(cell)) for cell in cells))
    console().print(table)
