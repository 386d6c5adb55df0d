"""The check behind `lorahydra data check`: what loading would refuse, collected instead of raised."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lorahydra.config.schema import DataConfig
from lorahydra.data.chat import ChatFormat
from lorahydra.data.problems import Problem
from lorahydra.data.report import DataReport, describe_splits
from lorahydra.data.splits import Split, cut, read_sources
from lorahydra.data.tokens import INPUT_IDS, encode_split, warnings_about
from lorahydra.errors import DataError

__all__ = ["check"]


def check(config: DataConfig, seed: int, *, chat: ChatFormat | None, cache: Path | None = None) -> DataReport:
    """Read, split and (with a tokenizer) measure a dataset, going on past rows with problems.

    Args:
        config: What to read and how.
        seed: Decides which rows are cut off for validation and test.
        chat: The model's chat format; without it there are no token lengths.
        cache: Folder of read rows and tokens; by default in the user's cache.

    Raises:
        DataError: A source as a whole cannot be used: missing, not text, of unknown columns.
        ServiceError: The hub is needed and cannot be reached.
        OutputError: The cache cannot be written.
    """
    sources = read_sources(config, cache)
    report = DataReport()
    report.add_sources(sources.values())
    if not all(len(rows) for rows in sources.values()):
        # Every row of a source has a problem, and there is nothing else to look at.
        return report
    try:
        splits = cut(sources, config, seed)
    except DataError as error:
        # Rows with problems have been left out, so that there may be nothing to split.
        report.add_problem(_problem(error))
        return report
    describe_splits(report, splits)
    if chat is None:
        report.warnings.append("no token lengths: name a model to have them measured with its tokenizer")
        return report
    for split in splits.values():
        _measure(split, chat, config, cache, report)
    return report


def _measure(split: Split, chat: ChatFormat, config: DataConfig, cache: Path | None, report: DataReport) -> None:
    """Add the token lengths of a split; longer rows are problems if training would refuse them."""
    try:
        store = encode_split(split, chat, cache)
    except DataError as error:
        report.add_problem(_problem(error))
        return
    lengths = store.lengths(INPUT_IDS)
    report.warnings += warnings_about(split, store, chat)
    report.add_lengths(split.name, lengths, config.max_length)
    over = np.flatnonzero(lengths > config.max_length)
    if not len(over):
        return
    if config.overlong != "error":
        what = "left out" if config.overlong == "drop" else "cut"
        report.warnings.append(
            f"{split.name}: {len(over)} of {len(split)} rows are over data.max_length={config.max_length} "
            f"and will be {what}"
        )
        return
    for row in over:
        message = f"{lengths[row]} tokens, over data.max_length={config.max_length}"
        report.add_problem(Problem(split.line(int(row)), None, message, split.source))


def _problem(error: DataError) -> Problem:
    """An error about a source as an entry of the report."""
    source = "" if error.path is None else str(error.path)
    where = str(DataError("", path=error.path, line=error.line, field=error.field))
    return Problem(error.line, error.field, str(error).removeprefix(where), source)
