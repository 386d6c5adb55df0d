"""`lorahydra generate`: answers of an adapter and of its base model, to prompts or in a chat."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lorahydra.cli.completing import folders
from lorahydra.cli.sharing import uri_option
from lorahydra.cli.showing import json_line, note, prompt_text, show_answers, write_lines
from lorahydra.config.schema import DTYPES, Dtype, ModelConfig
from lorahydra.errors import ConfigError, DataError, OutputError
from lorahydra.utils.files import writing

if TYPE_CHECKING:
    from lorahydra.inference.adapted_model import Conversation

__all__ = ["generate"]


@click.command(short_help="Answer prompts with an adapter, or chat with it.")
@click.argument("source", shell_complete=folders)
@click.argument("prompts", nargs=-1, metavar="[PROMPT]...")
@click.option(
    "--file", metavar="FILE", help="Prompts: .txt with one per line, or a dataset (.jsonl, .json, .csv, .parquet)."
)
@click.option(
    "--encoding", metavar="NAME", default="utf-8", show_default=True, help="Encoding of FILE or of the piped text."
)
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="FILE", help="Write the answers to FILE, as JSON lines."
)
@click.option("--compare", is_flag=True, help="Show the base model's answer beside the tuned one.")
@click.option("--untuned", is_flag=True, help="Show only the base model's answer.")
@click.option("--system", metavar="TEXT", help="System message instead of the adapter's; '' for none.")
@click.option("--max-new-tokens", type=click.IntRange(1), metavar="N", help="Longest answer [default: the adapter's].")
@click.option("--base", metavar="NAME", help="Where the base model is now: packaged name, folder or hub id.")
@click.option("--device", default="auto", show_default=True, help="As model.device.")
@click.option("--dtype", type=click.Choice(DTYPES), help="As model.dtype [default: that of the adapter's trial].")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines.")
@uri_option
def generate(
    source: str,
    prompts: tuple[str, ...],
    file: str | None,
    encoding: str,
    out: Path | None,
    compare: bool,
    untuned: bool,
    system: str | None,
    max_new_tokens: int | None,
    base: str | None,
    device: str,
    dtype: Dtype | None,
    as_json: bool,
    uri: str | None,
) -> None:
    """Answer PROMPTs, the prompts of a file, or piped text with adapter SOURCE; or chat with it on the terminal.

    SOURCE is a folder, the id of an MLflow run, models:/NAME@ALIAS, or the name of a study or registered model.
    Answers go to stdout, everything else to stderr.
    """
    if compare and untuned:
        raise ConfigError("--compare shows both answers and --untuned only one: give one of them")
    ModelConfig(device=device)  # refuses an unknown device before anything is loaded
    _check_out(out, file)
    conversations = _conversations(prompts, file, encoding)
    if conversations is None and (out is not None or as_json):
        raise ConfigError("--out and --json need prompts: a chat is only shown")
    from lorahydra.adapters.find import find_adapter

    with find_adapter(source, uri=uri) as adapter:
        # Imported here: torch takes seconds, but a typo should be reported at once.
        from lorahydra.inference.adapted_model import open_adapter

        with open_adapter(adapter.folder, base=base, device=device, dtype=dtype, system_prompt=system) as model:
            if conversations is None:
                from lorahydra.cli.chat import chat

                chat(model, max_new_tokens=max_new_tokens, compare=compare, tuned=not untuned)
                return
            columns = {
                "prompt": [prompt_text(conversation) for conversation in conversations],
                "answer": model.answer(conversations, max_new_tokens=max_new_tokens, tuned=not untuned),
            }
            if compare:
                columns["base_answer"] = model.answer(conversations, max_new_tokens=max_new_tokens, tuned=False)
    answered = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if out is not None:
        write_lines(answered, out)
        note(f"{len(answered)} answers: {out}")
    if as_json:
        for entry in answered:
            click.echo(json_line(entry))
    elif out is None:
        show_answers(answered)


def _check_out(out: Path | None, file: str | None) -> None:
    if out is None:
        return
    if out.is_dir():
        raise OutputError(f"cannot write to {out}: it is a folder")
    if file is not None and out.absolute() == Path(file).expanduser().absolute():
        raise ConfigError(f"--out {out} is the file with the prompts: choose another name")
    # Generating answers takes long, so check first that they can be written.
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=out.parent, prefix=f".{out.name}."):
            pass


def _conversations(prompts: Sequence[str], file: str | None, encoding: str) -> list[Conversation] | None:
    """The prompts; None for a chat."""
    from lorahydra.config.checks import text_encoding
    from lorahydra.data.examples import Message

    text_encoding("--encoding", encoding)
    if file is not None and prompts:
        raise ConfigError("give prompts as arguments or with --file, not both")
    if file is not None:
        return _of_file(file, encoding)
    if not prompts and sys.stdin is not None and sys.stdin.isatty():
        return None
    texts = list(prompts) or [_piped(encoding)]
    for text in texts:
        if not text.strip():
            raise DataError("there is nothing to answer: give a PROMPT or --file, or pipe a prompt in")
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise DataError("the prompt is not UTF-8 text")
    return [(Message("user", text),) for text in texts]


def _of_file(file: str, encoding: str) -> list[Conversation]:
    from lorahydra.data.prompt_files import read_prompts

    try:
        return read_prompts(file, encoding)
    except DataError as error:
        message = str(error).replace("data.encoding=", "--encoding ").replace("data.encoding", "--encoding")
        raise DataError(message) from error


def _piped(encoding: str) -> str:
    if sys.stdin is None:
        return ""
    try:
        return sys.stdin.buffer.read().decode(encoding).strip()
    except UnicodeDecodeError as error:
        raise DataError(f"the piped text is not {encoding.upper()}: give its encoding with --encoding") from error
