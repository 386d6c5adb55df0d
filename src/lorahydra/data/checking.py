"""The check behind `lorahydra data check`: what loading would refuse, collected instead of raised."""

from __future__ import annotations

from pathlib import Path

from lorahydra.config.schema import DataConfig
from lorahydra.data.chat.chat_format import ChatFormat
from lorahydra.data.length_limits import Fit
from lorahydra.data.loading import find_leakage, read_sources, warn_of_small
from lorahydra.data.problems import Problem
from lorahydra.data.report import DataReport, describe_splits
from lorahydra.data.splits import Split, cut
from lorahydra.data.tokens import encode_split, measure, warnings_about
from lorahydra.errors import DataError

__all__ = ["NO_LENGTHS", "check"]

NO_LENGTHS = "no token lengths: name a model to have them measured with its tokenizer"
"""Warning of a report that was made without a model."""


def check(
    config: DataConfig,
    seed: int,
    *,
    chat: ChatFormat | None,
    window: int | None = None,
    max_new_tokens: int = 0,
    cache: Path | None = None,
) -> DataReport:
    """Read, split and (with a tokenizer) measure a dataset, going on past rows with problems.

    Args:
        config: What to read and how.
        seed: Decides which rows are cut off for validation and test.
        chat: The model's chat format; without it there are no token lengths.
        window: Tokens that the model takes at most; None where it is not known.
        max_new_tokens: Room for an answer that the prompts of validation and test have to leave.
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
    warn_of_small(report, splits, sources, config)
    for fault in find_leakage(report, splits, sources, config):
        report.add_problem(_problem(fault))
    if chat is None:
        report.warnings.append(NO_LENGTHS)
        return report
    for split in splits.values():
        try:
            store = encode_split(split, chat, cache)
        except DataError as error:
            report.add_problem(_problem(error))
            continue
        report.warnings += warnings_about(split, store, chat)
        room = 0 if split.name == "train" else max_new_tokens
        _add_fit(report, split, measure(store, config.max_length, config.overlong, window, room))
    return report


def _add_fit(report: DataReport, split: Split, fit: Fit) -> None:
    """Tell how a split fits the limits; rows that do not are problems if training would refuse them."""
    report.add_fit(split.name, fit)
    if fit.overlong == "error":
        for row in fit.faults:
            report.add_problem(Problem(split.line(int(row)), None, fit.fault(int(row)), split.source))


def _problem(error: DataError) -> Problem:
    """An error about a source as an entry of the report."""
    source = "" if error.path is None else str(error.path)
    where = str(DataError("", path=error.path, line=error.line, field=error.field))
    return Problem(error.line, error.field, str(error).removeprefix(where), source)
