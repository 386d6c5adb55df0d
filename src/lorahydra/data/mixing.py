"""Rows of one or several sources as one sequence, and how often the training takes each.

The rows of several sources lie in turns, each source in its own order and spread over the whole, so that the first
rows (`data.max_train_rows`) come from all of them in proportion to their sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lorahydra.data.examples import Example
from lorahydra.data.hashing import seeded
from lorahydra.data.ingest import Rows

__all__ = ["Mixture"]


class Mixture:
    """All rows of one or more sources.

    Args:
        parts: The sources.
        weights: How often each row of a source is trained on, above 0; 1 for each source by default.
    """

    def __init__(self, parts: Sequence[Rows], weights: Sequence[float] = ()) -> None:
        self.parts = tuple(parts)
        self._weights = np.array(weights or [1.0] * len(parts), np.float64)
        sizes = [len(part) for part in parts]
        if len(parts) == 1:  # there is nothing to put in turns, and there may be very many rows
            self._order: Any = slice(None)
            self._part: Any = np.broadcast_to(np.int64(0), sizes)
            self._row: Any = range(sizes[0])
            return
        places = np.concatenate([(np.arange(size) + 0.5) / max(size, 1) for size in sizes])
        self._order = np.argsort(places, kind="stable")
        self._part = np.repeat(np.arange(len(parts)), sizes)[self._order]
        self._row = np.concatenate([np.arange(size) for size in sizes])[self._order]

    def with_part(
        self, indices: npt.NDArray[np.int64], part: Rows, rows: npt.NDArray[np.int64]
    ) -> tuple[Mixture, npt.NDArray[np.int64]]:
        """These rows with some of another source, as a mixture and the indices in it, ascending.

        Args:
            indices: Rows of this mixture.
            part: The other source.
            rows: Its rows.
        """
        both = Mixture([*self.parts, part])
        starts = np.cumsum([0, *map(len, self.parts)])
        own = starts[self.part_of(indices)] + np.array(self._row, np.int64)[indices]
        place = np.argsort(both._order)
        return both, np.sort(place[np.concatenate([own, starts[-1] + rows])])

    @property
    def source(self) -> str:
        """The sources as the user named them."""
        return ", ".join(part.source for part in self.parts)

    def __len__(self) -> int:
        return len(self._part)

    def example(self, index: int) -> Example:
        """Read one row."""
        return self.parts[int(self._part[index])].example(int(self._row[index]))

    def line(self, index: int) -> int:
        """Line (or row) number of one row in its source."""
        return self.parts[int(self._part[index])].line(int(self._row[index]))

    def source_of(self, index: int) -> str:
        """The source of one row as the user named it."""
        return self.parts[int(self._part[index])].source

    def part_of(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The number of the source of each row."""
        numbers: npt.NDArray[np.int64] = self._part[indices]
        return numbers

    def prompt_keys(self) -> npt.NDArray[np.bytes_]:
        """Hash of everything before the last answer, for each row."""
        keys: npt.NDArray[np.bytes_] = np.concatenate([part.prompt_keys() for part in self.parts])[self._order]
        return keys

    def example_keys(self) -> npt.NDArray[np.bytes_]:
        """Hash of the whole conversation, for each row."""
        keys: npt.NDArray[np.bytes_] = np.concatenate([part.example_keys() for part in self.parts])[self._order]
        return keys

    def weighted(self, indices: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.int64]:
        """The rows by the weights of their sources: 2 takes each row twice, 0.5 half of them, 2.5 both.

        Which half is decided by a hash of the row's content and the seed, and independently of the splits. A row that a
        smaller weight takes is also taken by a larger one.
        """
        weights = self._weights[self.part_of(indices)]
        if (weights == 1).all():
            return indices
        drawn = seeded(self.example_keys()[indices], f"{seed} weight") / 2.0**64 < weights % 1
        return np.repeat(indices, weights.astype(np.int64) + drawn)
