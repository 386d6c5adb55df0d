"""`lorahydra data …`: look at a dataset before anything is trained on it."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from itertools import takewhile
from typing import TYPE_CHECKING

import click

from lorahydra.cli.completing import files
from lorahydra.cli.preview import preview

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lorahydra.config.data import Format
    from lorahydra.config.schema import ColumnsConfig, DataConfig
    from lorahydra.data import ChatFormat, DataReport
    from lorahydra.data.report import LengthStats, SplitReport

__all__ = ["data"]

BAR_WIDTH = 40


@click.group(short_help="Check a dataset; see its examples as the model does.")
def data() -> None:
    """Look at a dataset before anything is trained on it."""


data.add_command(preview)


@data.command(short_help="Check a dataset and print a report.")
@click.argument("file", shell_complete=files)
@click.argument("overrides", metavar="[FILE]... [OVERRIDES]...", nargs=-1, shell_complete=files)
@click.option("--validation", metavar="FILE", help="Validation file; cut from FILE when left out.")
@click.option("--test", metavar="FILE", help="Test file; cut from FILE when left out.")
@click.option("--format", "scheme", default="auto", show_default=True, help="Column scheme (data.format).")
@click.option("--columns", metavar="A=B,…", help="Scheme column = column of the file, for example question=q,answer=a.")
@click.option("--encoding", default="utf-8", show_default=True, help="Character encoding of the text (data.encoding).")
@click.option("--model", metavar="NAME", help="Measure token lengths with this model's tokenizer.")
@click.option("--system-prompt", help="System message for conversations without one.")
@click.option("--max-length", type=int, default=1024, show_default=True, help="Longest example in tokens.")
@click.option("--max-new-tokens", type=int, default=256, show_default=True, help="Room for an answer in tokens.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=42, show_default=True, help="Seed of the split.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.pass_context
def check(
    context: click.Context,
    file: str,
    overrides: tuple[str, ...],
    validation: str | None,
    test: str | None,
    scheme: Format,
    columns: str | None,
    encoding: str,
    model: str | None,
    system_prompt: str | None,
    max_length: int,
    max_new_tokens: int,
    seed: int,
    as_json: bool,
) -> None:
    """Check FILE as a dataset, or several files as one, and print a report.

    FILE is JSONL, JSON, CSV or Parquet, a folder that `datasets` saved, or `demo`. Exits with 2 if the data
    cannot be trained on as they are, and names file, line and field of each problem. OVERRIDES are keys of train.py,
    for example data.encoding=windows-1251; they take precedence over the options.
    """
    from lorahydra.config.schema import DataConfig
    from lorahydra.data import check as check_data

    more = list(takewhile(lambda argument: "=" not in argument, overrides))
    overrides = overrides[len(more) :]
    config = DataConfig(
        train_file=[file, *more] if more else file,
        validation_file=validation,
        test_file=test,
        format=scheme,
        columns=_columns(columns),
        encoding=encoding,
        system_prompt=system_prompt,
        max_length=max_length,
    )
    if overrides:
        config = _overridden(config, overrides)
    chat, window = _model(model, config)
    report = check_data(config, seed, chat=chat, window=window, max_new_tokens=max_new_tokens)
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=2))
    else:
        click.echo("\n".join(_lines(report)))
        for problem in report.problems:
            click.echo(str(problem), err=True)
        if (hidden := report.total_problems - len(report.problems)) > 0:
            click.echo(f"… and {hidden} more", err=True)
    if not report.ok:
        context.exit(2)


def _overridden(config: DataConfig, overrides: Sequence[str]) -> DataConfig:
    """The configuration with some values replaced by overrides of train.py."""
    from lorahydra.config.compose import compose, literal

    names = [override.partition("=")[0].removeprefix("data.").partition(".")[0] for override in overrides]
    for name, override in zip(names, overrides, strict=True):
        if not override.startswith("data.") or not hasattr(config, name):
            raise click.BadParameter(f"'{override}': write data.KEY=VALUE", param_hint="OVERRIDES")
    if "mix" in names:
        raise click.BadParameter("data.mix: name the files, and set data.train_weights", param_hint="OVERRIDES")
    given = compose(["data=local", f"data.train_file=[{','.join(map(literal, config.train_files))}]", *overrides]).data
    return replace(config, **{name: getattr(given, name) for name in names})


def _columns(text: str | None) -> ColumnsConfig:
    """Read `a=b,c=d`."""
    from lorahydra.config.schema import ColumnsConfig

    names = [field.name for field in fields(ColumnsConfig)]
    pairs = [pair.partition("=") for pair in text.split(",")] if text else []
    for name, _, column in pairs:
        if name.strip() not in names or not column.strip():
            raise click.BadParameter(
                f"'{name}={column}': write NAME=COLUMN, as in question=q,answer=a, with NAME one of {', '.join(names)}",
                click.get_current_context(),
                param_hint="--columns",
            )
    return ColumnsConfig(**{name.strip(): column.strip() for name, _, column in pairs})


def _model(model: str | None, config: DataConfig) -> tuple[ChatFormat | None, int | None]:
    """The chat format and the context of a model, without reading its weights; None if no model is given."""
    from lorahydra.config.schema import ModelConfig
    from lorahydra.data import ChatFormat
    from lorahydra.modeling.base import load_context_window, load_tokenizer

    if model is None:
        return None, None
    named = ModelConfig(name_or_path=model)
    chat = ChatFormat(load_tokenizer(named), system_prompt=config.system_prompt, special_tokens=config.special_tokens)
    return chat, load_context_window(named)


def _lines(report: DataReport) -> Iterator[str]:
    """The report as text, without the problems."""
    for source in report.sources:
        yield f"{source.source}"
        yield f"  rows             {source.rows}"
        if source.format:
            pairs = (name if name == column else f"{name} = {column}" for name, column in source.columns_used.items())
            yield f"  columns used     {', '.join(pairs)} ({source.format})"
        yield f"  columns ignored  {', '.join(source.columns_ignored) or 'none'}"
        yield f"  empty answers    {source.empty_answers}"
        yield f"  not UTF-8        {source.undecodable_lines}"
        yield f"  problems         {source.problems}"
    for split in report.splits:
        yield from _split_lines(split, report.max_length)
    for leak in report.leakage:
        yield (
            f"leakage {leak.of} in {leak.into}: {leak.same_prompt} same prompt, "
            f"{leak.same_example} same prompt and answer"
        )
    for warning in report.warnings:
        yield f"warning: {warning}"
    count = report.total_problems
    yield "result: ready to train on" if report.ok else f"result: {count} problem{'s' if count > 1 else ''}"


def _split_lines(split: SplitReport, max_length: int | None) -> Iterator[str]:
    yield f"split {split.name}: {split.rows} rows of {split.source}"
    yield f"  digest           {split.digest}"
    for part in split.parts:
        yield f"  of them          {part.rows} rows of {part.source}, digest {part.digest}"
    yield f"  duplicates       {split.duplicates}"
    if split.lengths is not None:
        yield f"  over the limit   {split.over_limit} of more than {max_length} tokens"
        if split.without_room:
            yield f"  no room          {split.without_room} prompts leave none for an answer"
        yield from _histogram(split.lengths)


def _histogram(lengths: LengthStats) -> Iterator[str]:
    yield (
        f"  tokens           min {lengths.min}, median {lengths.median:g}, mean {lengths.mean:.1f}, "
        f"p95 {lengths.p95:g}, max {lengths.max}"
    )
    most = max(lengths.counts)
    for number, count in enumerate(lengths.counts):
        low, high = lengths.bin_edges[number], lengths.bin_edges[number + 1] - 1
        bar = "#" * -(-count * BAR_WIDTH // most)
        yield f"    {low:>6} to {high:>6}  {count:>8}  {bar}".rstrip()
