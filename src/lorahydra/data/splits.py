"""Train, validation and test splits of conversations that stay on disk.

Without a file of its own a split is cut from the training source by a hash of each row's content and the
seed. So the cut does not depend on the order of rows, rows added later do not move the others (except for a few where
there are only hundreds), and equal rows or rows of the same prompt are never on both sides.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from lorahydra.config.schema import DataConfig
from lorahydra.data.arrow_cache import RowSequence
from lorahydra.data.examples import Example
from lorahydra.data.hashing import seeded
from lorahydra.data.ingest import Rows
from lorahydra.data.mixing import Mixture
from lorahydra.data.sources import REPLAY, SPLITS
from lorahydra.errors import DataError

__all__ = ["Split", "cut"]

EXACT = 32
"""Up to this number of rows, a split that is cut off has exactly its fraction."""


class Split(RowSequence[Example]):
    """Examples of one split (`train`, `validation` or `test`) in the order of their source, read when asked for."""

    def __init__(self, name: str, rows: Mixture, indices: npt.NDArray[np.int64], source: str = "") -> None:
        super().__init__(indices)
        self.name = name
        self.source = source or rows.source
        """The source as the user named it; several are joined by commas."""
        self._rows = rows
        self.digest = hashlib.sha256(self.example_keys().tobytes()).hexdigest()
        """Hex SHA-256 of the content in order; equal content has an equal digest on every machine."""

    def _read(self, row: int) -> Example:
        return self._rows.example(row)

    def part(self, indices: npt.NDArray[np.int64]) -> Split:
        """The split with these of its examples only; the indices ascend, shape (number of examples kept,)."""
        return self if len(indices) == len(self) else Split(self.name, self._rows, self.indices[indices])

    def with_part(self, part: Rows, rows: npt.NDArray[np.int64]) -> Split:
        """The split with these rows of another source among its own."""
        return Split(self.name, *self._rows.with_part(self.indices, part, rows))

    def line(self, index: int) -> int:
        """Line (or row) number of an example in its source."""
        return self._rows.line(int(self.indices[index]))

    def source_of(self, index: int) -> str:
        """The source of an example as the user named it."""
        return self._rows.source_of(int(self.indices[index]))

    def place(self, index: int) -> str:
        """Source and line of an example, for messages."""
        return f"{self.source_of(index)}:{self.line(index)}"

    def parts(self) -> list[Split]:
        """The examples of each source, where there are several; empty otherwise."""
        numbers = self._rows.part_of(self.indices)
        several = len(self._rows.parts) if len(self._rows.parts) > 1 else 0
        kept = [(self._rows.parts[n].source, self.indices[numbers == n]) for n in range(several)]
        return [Split(self.name, self._rows, indices, source) for source, indices in kept if len(indices)]

    @property
    def duplicates(self) -> int:
        """Rows whose whole conversation also comes earlier; copies that a weight makes are no duplicates."""
        rows = np.unique(self.indices)
        return len(rows) - len(np.unique(self._rows.example_keys()[rows]))

    def prompt_keys(self) -> npt.NDArray[np.bytes_]:
        """Hash of everything before the last answer, for each example; shape (number of examples,)."""
        return self._rows.prompt_keys()[self.indices]

    def example_keys(self) -> npt.NDArray[np.bytes_]:
        """Hash of the whole conversation, for each example; shape (number of examples,)."""
        return self._rows.example_keys()[self.indices]


def cut(sources: dict[str, Mixture], config: DataConfig, seed: int) -> dict[str, Split]:
    """Make the splits from the rows of their sources, none of which is empty.

    Raises:
        DataError: A split would be empty.
    """
    if "validation" not in sources and not config.validation_fraction:
        raise DataError(
            "there is no validation split: set data.validation_fraction above 0, or give data.validation_file"
        )
    fractions = [0.0 if name in sources else getattr(config, f"{name}_fraction") for name in SPLITS[1:]]
    exact = config.split_version > 1
    parts = dict(zip(SPLITS, _assign(sources["train"], fractions, seed, exact), strict=True))
    splits = {}
    for name in SPLITS:
        rows = sources["train"]
        if name != "train" and name in sources:
            rows = sources[name]
            parts[name] = np.arange(len(rows), dtype=np.int64)
        elif name == "train":
            # The other splits are the same with all weights.
            parts[name] = rows.weighted(parts[name], seed)
        limit = config.max_train_rows if name == "train" else config.max_eval_rows
        if len(parts[name]):
            splits[name] = Split(name, rows, parts[name][:limit])
    if "train" not in splits:
        raise DataError("data.train_weights leave no training row: raise them", path=sources["train"].source)
    if REPLAY in sources:
        splits["train"] = _with_replay(splits, sources[REPLAY].parts[0], config.replay.share, seed)
    return splits


def _with_replay(splits: dict[str, Split], general: Rows, share: float, seed: int) -> Split:
    """The training split with general rows, as many as make this share of it.

    Which they are is decided by a hash of the row and the seed, so that a larger share keeps those of a smaller one. If
    there are too few, each is taken several times. Rows whose prompt is validated or tested on are left out.
    """
    held = [split.prompt_keys() for name, split in splits.items() if name != "train"]
    usable = np.flatnonzero(~np.isin(general.prompt_keys(), np.concatenate(held)))
    if not len(usable):
        raise DataError("has no row whose prompt is not also in the validation or test split", path=general.source)
    order = usable[np.argsort(seeded(general.example_keys()[usable], f"{seed} replay"), kind="stable")]
    wanted = max(1, round(len(splits["train"]) * share / (1 - share)))
    return splits["train"].with_part(general, np.resize(order, wanted))


def _assign(rows: Mixture, fractions: list[float], seed: int, exact: bool) -> list[npt.NDArray[np.int64]]:
    """Row indices for train, validation and test, the latter two of the given fractions (0: none).

    Groups of rows are ordered by hash; validation takes the lowest hashes, then test. A fraction above 0 gets at
    least one group as long as one is left for train, and validation comes before test. Version 1
    of the splits was not `exact`.
    """
    hashes, weights = _groups(rows, seed, by_prompt=exact)
    distinct = np.unique(hashes)
    # Distinct rows in the first groups; shape (groups + 1,).
    below = np.append(0, np.cumsum(weights))
    bounds, taken, until = [], 0, 0.0
    for fraction in fractions:
        until += fraction
        upto = int(np.searchsorted(distinct, np.uint64(int(until * 2**64))))
        if exact:
            upto = _near(upto, below, taken, fraction)
        taken += min(max(upto - taken, 1 if fraction else 0), len(distinct) - 1 - taken)
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


def _near(threshold: int, below: npt.NDArray[np.int64], taken: int, fraction: float) -> int:
    """Where a split ends in the order of hashes, so that it has about its fraction of the rows.

    A threshold on the hash never moves a row when others are added, but the resulting size is a matter of chance: of 20
    rows it may take none or five. So the threshold holds while the size is near enough, which is so in all but small
    data; there, ranks give the exact size, and added rows may move a few others. `below` counts the distinct rows in
    the first groups, shape (groups + 1,), of which `taken` belong to the splits before.
    """
    wanted = round(fraction * int(below[-1]))
    slack = max(0, wanted - EXACT) // 4
    least, most = below[taken] + wanted - slack, below[taken] + wanted + slack
    if below[threshold] < least:
        return int(np.searchsorted(below, least))
    if below[threshold] > most:
        return int(np.searchsorted(below, most, side="right")) - 1
    return threshold


def _groups(rows: Mixture, seed: int, *, by_prompt: bool) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
    """The hash by which each row finds its split, and how many distinct rows each hash has, by ascending hash.

    Equal rows have the same hash, and so do rows of the same prompt: otherwise the answer to a held-out one could have
    been learnt. A prompt of very many rows is not kept together, since it could fill a split on its own.
    """
    hashes = seeded(rows.example_keys(), seed)
    distinct, first = np.unique(hashes, return_index=True)
    prompts = seeded(rows.prompt_keys(), seed)
    names, counts = np.unique(prompts[first], return_counts=True)
    together = (counts > 1) & (counts <= max(3, len(first) // 20))
    if not by_prompt or not together.any():
        return hashes, np.ones(len(distinct), np.int64)
    grouped = np.where(np.isin(prompts, names[together]), prompts, hashes)
    groups, weights = np.unique(grouped[first], return_counts=True)
    if len(groups) < len(SPLITS):
        return hashes, np.ones(len(distinct), np.int64)
    return grouped, weights
