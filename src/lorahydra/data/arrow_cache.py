"""Cache entries: a table in an Arrow file, memory-mapped on reading, and facts about it in JSON beside it.

An entry is a folder named after what it was made from. It appears at once or not at all, is made by one
process at a time, and is checked against its checksum on opening, so that a damaged one is made again.
"""

from __future__ import annotations

import json
import shutil
import zlib
from bisect import bisect_right
from collections.abc import Callable, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lorahydra.utils.files import atomic_dir, locked

__all__ = ["Store", "Writer", "cached"]

TABLE = "table.arrow"
FACTS = "facts.json"
BLOCK_BYTES = 1024 * 1024
BATCH_ROWS = 4096
BATCH_BYTES = 4 * 1024 * 1024


class Writer:
    """Collects rows and writes them in batches of bounded size."""

    def __init__(self, sink: Any, schema: Any) -> None:
        self._sink = sink
        self._schema = schema
        self._rows: list[tuple[Any, ...]] = []
        self._bytes = 0
        self.rows = 0

    def add(self, row: tuple[Any, ...], size: int) -> None:
        """Add a row, its values in the order of the schema, of about `size` bytes."""
        self._rows.append(row)
        self._bytes += size
        self.rows += 1
        if len(self._rows) >= BATCH_ROWS or self._bytes >= BATCH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what is collected."""
        import pyarrow as pa

        if not self._rows:
            return
        columns = [
            pa.array(column, type=field.type)
            for column, field in zip(zip(*self._rows, strict=True), self._schema, strict=True)
        ]
        self._sink.write_batch(pa.record_batch(columns, schema=self._schema))
        self._rows.clear()
        self._bytes = 0


class Store:
    """An opened cache entry.

    Args:
        folder: The entry.

    Raises:
        OSError: It cannot be read.
        ValueError: It is damaged.
    """

    def __init__(self, folder: Path) -> None:
        import pyarrow as pa

        facts = json.loads((folder / FACTS).read_text("utf-8"))
        if facts["checksum"] != _checksum(folder / TABLE):
            raise ValueError(f"{folder} is damaged")
        self.folder = folder
        self.facts: dict[str, Any] = facts["facts"]
        # The memory map stays valid even if another process removes the entry.
        with pa.ipc.open_file(pa.memory_map(str(folder / TABLE))) as file:
            self._batches = [file.get_batch(number) for number in range(file.num_record_batches)]
        self._starts: list[int] = [0, *accumulate(batch.num_rows for batch in self._batches)]

    def __reduce__(self) -> tuple[type[Store], tuple[Path]]:
        return Store, (self.folder,)

    def __len__(self) -> int:
        return self._starts[-1]

    def row(self, index: int) -> tuple[Any, ...]:
        """Values of one row as Python objects, in the order of the schema."""
        batch, offset = self._find(index)
        return tuple(column[offset].as_py() for column in batch.columns)

    def value(self, column: int, index: int) -> Any:
        """One value as an Arrow scalar."""
        batch, offset = self._find(index)
        return batch.column(column)[offset]

    def hashes(self, column: int, width: int) -> npt.NDArray[np.bytes_]:
        """A column of fixed-size binary values, whole, as an array of `S<width>`."""
        parts = [
            np.frombuffer(batch.column(column).buffers()[1], f"S{width}", batch.num_rows) for batch in self._batches
        ]
        return np.concatenate(parts) if parts else np.empty(0, f"S{width}")

    def lengths(self, column: int) -> npt.NDArray[np.int64]:
        """How long each row's list is, for a column of lists."""
        parts = [batch.column(column).value_lengths().to_numpy() for batch in self._batches]
        return np.concatenate(parts).astype(np.int64) if parts else np.empty(0, np.int64)

    def items(self, column: int) -> npt.NDArray[Any]:
        """A column of lists of numbers: all numbers of all rows in one array, in memory."""
        parts = [batch.column(column).flatten().to_numpy() for batch in self._batches]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def highest(self, column: int) -> int:
        """The largest number in a column of lists of them; 0 where there is none."""
        parts = (batch.column(column).flatten().to_numpy() for batch in self._batches)
        return max((int(part.max()) for part in parts if len(part)), default=0)

    def _find(self, index: int) -> tuple[Any, int]:
        batch = bisect_right(self._starts, index) - 1
        return self._batches[batch], index - self._starts[batch]


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _try_open(folder: Path) -> Store | None:
    try:
        return Store(folder)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def cached(folder: Path, schema: Any, build: Callable[[Writer], Mapping[str, Any]]) -> Store:
    """Open the cache entry `folder`, made by `build` if it is not there or damaged.

    Args:
        folder: The entry; its name tells everything that its content depends on.
        schema: Arrow schema of the table.
        build: Adds all rows to the writer and returns facts for the JSON file.

    Raises:
        OutputError: The cache cannot be written.
    """
    if store := _try_open(folder):
        return store
    with locked(folder):
        # Another process may have made it while this one waited.
        if store := _try_open(folder):
            return store
        # What a killed process left; the lock says that nobody works on it.
        for leftover in (folder, *folder.parent.glob(f".{folder.name}.*")):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
        with atomic_dir(folder) as temporary:
            _write(temporary, schema, build)
        return Store(folder)


def _write(folder: Path, schema: Any, build: Callable[[Writer], Mapping[str, Any]]) -> None:
    import pyarrow as pa

    with pa.OSFile(str(folder / TABLE), "wb") as sink, pa.ipc.new_file(sink, schema) as file:
        writer = Writer(file, schema)
        facts = build(writer)
        writer.flush()
    content = {"checksum": _checksum(folder / TABLE), "facts": facts}
    (folder / FACTS).write_text(json.dumps(content), "utf-8")
