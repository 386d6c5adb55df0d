"""Train, validation and test splits of conversations that stay on disk.

Without a file of its own a split is cut from the training source by a hash of each row's content and the
seed. So the cut does not depend on the order of rows, rows added later do not move the others, and equal rows
are never on both sides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt

from lorahydra.config.schema import DataConfig
from lorahydra.data.examples import Example
from lorahydra.data.ingest import Rows, ingest
from lorahydra.data.report import DataReport, describe_splits
from lorahydra.data.sources import SPLITS, locate
from lorahydra.errors import DataError

__all__ = ["DataSplits", "Split", "cut", "load_splits", "read_sources"]


class Split(Sequence[Example]):
    """Examples of one split in the order of their source, read from disk when asked for.

    Args:
        name: `train`, `validation` or `test`.
        rows: The source's rows.
        indices: Which of them, ascending; shape (number of examples,).
    """

    def __init__(self, name: str, rows: Rows, indices: npt.NDArray[np.int64]) -> None:
        self.name = name
        self.source = rows.source
        """The source as the user named it."""
        self._rows = rows
        self._indices = indices
        self.digest = hashlib.sha256(self.example_keys().tobytes()).hexdigest()
        """Hex SHA-256 of the content in order; equal content has an equal digest on every machine."""

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self._rows.example(int(row)) for row in self._indices[index]]
        return self._rows.example(int(self._indices[index]))

    def __iter__(self) -> Iterator[Example]:
        return (self._rows.example(int(row)) for row in self._indices)

    def line(self, index: int) -> int:
        """Line (or row) number of an example in the source."""
        return self._rows.line(int(self._indices[index]))

    def prompt_keys(self) -> npt.NDArray[np.bytes_]:
        """Hash of everything before the last answer, for each example; shape (number of examples,)."""
        return self._rows.prompt_keys()[self._indices]

    def example_keys(self) -> npt.NDArray[np.bytes_]:
        """Hash of the whole conversation, for each example; shape (number of examples,)."""
        return self._rows.example_keys()[self._indices]


@dataclass
class DataSplits:
    """The splits of one dataset and the report about them."""

    train: Split
    validation: Split
    test: Split | None
    """None where `data.test_fraction` is 0, or there are too few rows for a third split."""
    report: DataReport


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
    if "test" not in splits and config.test_fraction:
        report.warnings.append("too few rows for a test split: the winner of a study cannot be scored on unseen rows")
    return DataSplits(splits["train"], splits["validation"], splits.get("test"), report)


def read_sources(config: DataConfig, cache: Path | None) -> dict[str, Rows]:
    """Read the source of each split that has one of its own; all are located before the first is read."""
    return {name: ingest(source, config, cache) for name, source in locate(config).items()}


def cut(sources: dict[str, Rows], config: DataConfig, seed: int) -> dict[str, Split]:
    """Make the splits from the rows of their sources, none of which is empty.

    Raises:
        DataError: A split would be empty.
    """
    if "validation" not in sources and not config.validation_fraction:
        raise DataError(
            "there is no validation split: set data.validation_fraction above 0, or give data.validation_file"
        )
    fractions = [0.0 if name in sources else getattr(config, f"{name}_fraction") for name in SPLITS[1:]]
    parts = dict(zip(SPLITS, _assign(sources["train"], fractions, seed), strict=True))
    splits = {}
    for name in SPLITS:
        rows = sources["train"]
        if name != "train" and name in sources:
            rows = sources[name]
            parts[name] = np.arange(len(rows), dtype=np.int64)
        limit = config.max_train_rows if name == "train" else config.max_eval_rows
        if len(parts[name]):
            splits[name] = Split(name, rows, parts[name][:limit])
    return splits


def _assign(rows: Rows, fractions: list[float], seed: int) -> list[npt.NDArray[np.int64]]:
    """Row indices for train, validation and test, the latter two of the given fractions (0: none).

    Rows are ordered by hash, equal rows together; validation takes the lowest hashes, then test. A fraction
    above 0 gets at least one distinct row as long as one is left for train, and validation comes before test.
    """
    hashes = _seeded(rows.example_keys(), seed)
    distinct = np.unique(hashes)
    bounds, taken, until = [], 0, 0.0
    for fraction in fractions:
        until += fraction
        count = int(np.searchsorted(distinct, np.uint64(int(until * 2**64)))) - taken
        taken += min(max(count, 1 if fraction else 0), len(distinct) - 1 - taken)
        bounds.append(taken)
    if fractions[0] and not bounds[0]:
        raise DataError(
            f"has {len(rows)} row{'s, all the same' if len(rows) > 1 else ''}, too few to split off a "
            "validation set: add rows, or give data.validation_file",
            path=rows.source,
        )
    place = np.searchsorted(distinct, hashes)
    part = np.searchsorted(np.array(bounds), place, side="right")
    return [np.flatnonzero(part == number) for number in (2, 0, 1)]


def _seeded(keys: npt.NDArray[np.bytes_], seed: int) -> npt.NDArray[np.uint64]:
    """A 64-bit hash of each key and the seed: the finaliser of SplitMix64 (Steele, Lea and Flood, 2014)."""
    start = int.from_bytes(hashlib.blake2b(str(seed).encode(), digest_size=8).digest(), "little")
    value = np.frombuffer(keys.tobytes(), "<u8")[::2] ^ np.uint64(start)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
