"""From a config to the splits of one dataset, read, checked and reported on."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lorahydra.config.schema import DataConfig
from lorahydra.data.ingest import Rows, ingest
from lorahydra.data.report import DataReport, describe_splits
from lorahydra.data.sources import locate
from lorahydra.data.splits import Split, cut
from lorahydra.errors import DataError

__all__ = ["DataSplits", "find_leakage", "load_splits", "read_sources", "warn_of_small"]

FEW = 8
"""A split of fewer rows than these is warned about."""


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
    for rows in sources.values():
        rows.require_valid()
    splits = cut(sources, config, seed)
    report = DataReport()
    report.add_sources(sources.values())
    describe_splits(report, splits)
    warn_of_small(report, splits, sources, config)
    for fault in find_leakage(report, splits, sources, config):
        raise fault
    return DataSplits(splits["train"], splits["validation"], splits.get("test"), report)


def warn_of_small(
    report: DataReport, splits: Mapping[str, Split], sources: Collection[str], config: DataConfig
) -> None:
    """Say which splits have too few rows for what they are there for, unless the user wants so few."""
    for name, purpose in (("validation", "to tell trials apart"), ("test", "to say whether tuning helped")):
        rows = len(splits[name]) if name in splits else 0
        if rows < FEW and rows != config.max_eval_rows and (rows or config.test_fraction):
            others = "" if name in sources else f", raise data.{name}_fraction, or give data.{name}_file"
            report.warnings.append(
                f"{name} has {rows} row{'' if rows == 1 else 's'}, too few {purpose}: scores will differ by chance; "
                f"add rows{others}"
            )


def find_leakage(
    report: DataReport, splits: Mapping[str, Split], sources: Collection[str], config: DataConfig
) -> Iterator[DataError]:
    """Splits from a source of their own whose prompts stand in the training rows more often than is allowed."""
    for leak in report.leakage:
        rows = len(splits[leak.of])
        if leak.into == "train" and leak.of in sources and leak.same_prompt > config.max_leakage * rows:
            yield DataError(
                f"{leak.same_prompt} of {rows} {leak.of} prompts are also in train ({leak.same_example} with the same "
                f"answer), a larger share than data.max_leakage={config.max_leakage:g}: scores would tell what was "
                "remembered; use other rows, or raise data.max_leakage",
                path=splits[leak.of].source,
            )


def read_sources(config: DataConfig, cache: Path | None) -> dict[str, Rows]:
    """Read the source of each split that has one of its own; all are located before the first is read."""
    return {name: ingest(source, config, cache) for name, source in locate(config).items()}
