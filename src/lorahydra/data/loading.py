"""From a configuration to the splits of one dataset: `load_splits` refuses rows with problems, `check` reports them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lorahydra.config.schema import ColumnsConfig, DataConfig
from lorahydra.data.chat.chat_format import ChatFormat
from lorahydra.data.ingest import Rows, ingest
from lorahydra.data.mixing import Mixture
from lorahydra.data.problems import Problem
from lorahydra.data.report import DataReport, Leakage, SplitPart, SplitReport
from lorahydra.data.schemes import PREFERENCE
from lorahydra.data.sources import REPLAY, locate
from lorahydra.data.splits import Split, cut
from lorahydra.data.tokens import encode_split, measure, row_warnings
from lorahydra.errors import DataError

__all__ = ["NO_LENGTHS", "DataSplits", "check", "load_splits", "read_sources"]

FEW = 8
"""A split of fewer rows than these is warned about."""
NO_LENGTHS = "no token lengths: name a model to have them measured with its tokenizer"
"""Warning of a report that was made without a model."""


@dataclass
class DataSplits:
    """The splits of one dataset and the report about them."""

    train: Split
    validation: Split
    test: Split | None
    """None where `data.test_fraction` is 0, or there are too few rows for a third split."""
    report: DataReport

    def __iter__(self) -> Iterator[Split]:
        return (split for split in (self.train, self.validation, self.test) if split is not None)

    def part(self, indices: Mapping[str, npt.NDArray[np.int64]]) -> DataSplits:
        """The splits with only these of their examples, by the split's name; a test split without any is None."""
        parts = [split.part(indices[split.name]) for split in self]
        test = parts[2] if len(parts) > 2 and len(parts[2]) else None
        return DataSplits(parts[0], parts[1], test, self.report)


def load_splits(config: DataConfig, seed: int, *, cache: Path | None = None) -> DataSplits:
    """Read, check and split a dataset.

    Args:
        config: What to read and how.
        seed: Decides which rows are cut off for validation and test.
        cache: Folder of read rows; by default in the user's cache.

    Raises:
        DataError: A source cannot be used, has a row with a problem, or is too small to be split.
        ServiceError: The hub is needed and cannot be reached.
        OutputError: The cache cannot be written.
    """
    sources = read_sources(config, cache)
    for rows in _each(sources):
        rows.require_valid()
    for rows in _each(sources) if config.pii == "error" else ():
        rows.require_impersonal()
    report = _report_on(sources, config)
    splits = cut(sources, config, seed)
    for fault in _describe_splits(report, splits, sources, config):
        raise fault
    return DataSplits(splits["train"], splits["validation"], splits.get("test"), report)


def check(
    config: DataConfig,
    seed: int,
    *,
    chat: ChatFormat | None,
    window: int | None = None,
    max_new_tokens: int = 0,
    cache: Path | None = None,
) -> DataReport:
    """Read, split and (with a tokenizer) measure a dataset; what `load_splits` would refuse is collected, not raised.

    Args:
        config: As for `load_splits`, like `seed` and `cache`.
        seed: Decides which rows are cut off for validation and test.
        chat: The model's chat format; without it there are no token lengths.
        window: Tokens that the model takes at most; None where it is not known.
        max_new_tokens: Room for an answer that the prompts of validation and test have to leave.
        cache: Folder of read rows and tokens.

    Raises:
        LorahydraError: A source as a whole cannot be used, as in `load_splits`.
    """
    sources = read_sources(config, cache)
    report = _report_on(sources, config)
    if not all(len(rows) for rows in _each(sources)):
        # Every row of a source has a problem, and there is nothing else to look at.
        return report
    try:
        splits = cut(sources, config, seed)
    except DataError as error:
        # Rows with problems have been left out, so there may be nothing to split.
        report.add_problem(Problem.of(error))
        return report
    for fault in _describe_splits(report, splits, sources, config):
        report.add_problem(Problem.of(fault))
    if chat is None:
        report.warnings.append(NO_LENGTHS)
        return report
    for split in splits.values():
        try:
            store = encode_split(split, chat, cache)
        except DataError as error:
            report.add_problem(Problem.of(error))
            continue
        report.warnings += row_warnings(split, store, chat)
        room = 0 if split.name == "train" else max_new_tokens
        fit = measure(store, config.max_length, config.overlong, window, room)
        report.add_fit(split.name, fit)
        for row in fit.faults.tolist() if fit.overlong == "error" else ():
            report.add_problem(Problem(split.line(row), None, fit.fault(row), split.source_of(row)))
    return report


def read_sources(config: DataConfig, cache: Path | None) -> dict[str, Mixture]:
    """Read the sources of each split that has its own; all are located before the first is read."""
    # The mapping of columns is that of the user's own files.
    own_format = config.format if config.format == PREFERENCE.name else "auto"
    general = replace(config, format=own_format, columns=ColumnsConfig())
    sources = {
        name: [ingest(source, general if name == REPLAY else config, cache) for source in each]
        for name, each in locate(config).items()
    }
    read = [rows for each in sources.values() for rows in each if len(rows)]
    for rows in read:
        if rows.report.holds_pairs != read[0].report.holds_pairs:
            with_pairs, without = (rows, read[0]) if rows.report.holds_pairs else (read[0], rows)
            raise DataError(
                f"holds pairs of answers (chosen and rejected), and {without.source} does not: use files of one kind",
                path=with_pairs.source,
            )
    return {name: Mixture(each, config.train_weights if name == "train" else ()) for name, each in sources.items()}


def _each(sources: Mapping[str, Mixture]) -> Iterator[Rows]:
    """The sources of all splits."""
    return (rows for mixture in sources.values() for rows in mixture.parts)


def _report_on(sources: Mapping[str, Mixture], config: DataConfig) -> DataReport:
    """A report of what was found in reading."""
    report = DataReport()
    for rows in _each(sources):
        report.sources.append(rows.report)
        report.problems += rows.problems
        report.total_problems += rows.report.problems
        report.warnings += rows.warnings()
        for found in rows.report.personal_data:
            if config.pii == "error":
                report.add_problem(Problem.of(found.refusal(rows.source, len(rows))))
            else:
                report.warnings.append(found.warning(rows.source, len(rows)))
    return report


def _describe_splits(
    report: DataReport, splits: Mapping[str, Split], sources: Mapping[str, Mixture], config: DataConfig
) -> list[DataError]:
    """Add the splits to a report; returns those whose rows are in the training split more often than is allowed."""
    for split in splits.values():
        duplicates = split.duplicates
        parts = [SplitPart(part.source, part.digest, len(part)) for part in split.parts()]
        report.splits.append(SplitReport(split.name, split.source, split.digest, len(split), duplicates, parts=parts))
        if duplicates:
            report.warnings.append(f"{split.name}: {duplicates} of {len(split)} rows are duplicates")
    faults = []
    for seen, held in combinations(splits.values(), 2):
        prompts = int(np.isin(held.prompt_keys(), seen.prompt_keys()).sum())
        examples = int(np.isin(held.example_keys(), seen.example_keys()).sum())
        report.leakage.append(Leakage(held.name, seen.name, prompts, examples))
        if prompts:
            report.warnings.append(
                f"{prompts} of {len(held)} {held.name} prompts are also in {seen.name} "
                f"({examples} with the same answer)"
            )
        if seen.name == "train" and held.name in sources and prompts > config.max_leakage * len(held):
            message = (
                f"{prompts} of {len(held)} {held.name} prompts are also in train ({examples} with the same answer), a "
                f"larger share than data.max_leakage={config.max_leakage:g}: scores would reward what was memorised; "
                "use other rows, or raise data.max_leakage"
            )
            faults.append(DataError(message, path=held.source))
    report.warnings += _small_splits(splits, sources, config)
    if REPLAY in sources:
        general = splits["train"].parts()[-1]
        if len(general) > (distinct := len(np.unique(general.indices))):
            report.warnings.append(
                f"{general.source}: {distinct} rows are taken {len(general)} times in all to make "
                f"data.replay.share={config.replay.share:g} of the training rows: add rows, or lower the share"
            )
    return faults


def _small_splits(splits: Mapping[str, Split], sources: Mapping[str, Mixture], config: DataConfig) -> Iterator[str]:
    """Which splits have too few rows for their purpose, unless the user wants so few; one line each."""
    for name, purpose in (("validation", "to tell trials apart"), ("test", "to say whether tuning helped")):
        rows = len(splits[name]) if name in splits else 0
        if rows < FEW and rows != config.max_eval_rows and (rows or config.test_fraction):
            others = "" if name in sources else f", raise data.{name}_fraction, or give data.{name}_file"
            yield (
                f"{name} has {rows} row{'' if rows == 1 else 's'}, too few {purpose}: scores will differ by chance; "
                f"add rows{others}"
            )
