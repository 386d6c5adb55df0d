"""Cache entries: a table in an Arrow file, memory-mapped on reading, and facts about it in JSON beside it.

An entry is a folder named after what it was made from. It appears at once or not at all, is made by one process at a
time, and is checked against its checksum on opening, so that a damaged one is made again. (The cache of `datasets` has
no checksum and no place for facts, and trusts what a killed process left.)
"""

from __future__ import annotations

import json
import shutil
import zlib
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import numpy.typing as npt

from lorahydra.utils.files import atomic_dir, data_cache_dir, locked

__all__ = ["RowSequence", "Store", "Writer", "cached", "data_cache"]

TABLE = "table.arrow"
FACTS = "facts.json"
BLOCK_BYTES = 1024 * 1024
BATCH_ROWS = 4096
BATCH_BYTES = 4 * 1024 * 1024

Item = TypeVar("Item")


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

        if self._rows:
            columns = zip(zip(*self._rows, strict=True), self._schema.types, strict=True)
            arrays = [pa.array(column, type=kind) for column, kind in columns]
            self._sink.write_batch(pa.record_batch(arrays, schema=self._schema))
        self._rows.clear()
        self._bytes = 0


class Store:
    """An opened cache entry; raises `OSError` if it cannot be read and `ValueError` if it is damaged."""

    def __init__(self, folder: Path) -> None:
        import pyarrow as pa

        facts = json.loads((folder / FACTS).read_text("utf-8"))
        if facts["checksum"] != _checksum(folder / TABLE):
            raise ValueError(f"{folder} is damaged")
        self.facts: dict[str, Any] = facts["facts"]
        # The memory map stays valid even if another process removes the entry.
        with pa.ipc.open_file(pa.memory_map(str(folder / TABLE))) as file:
            self._table = file.read_all()

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @property
    def columns(self) -> int:
        """Number of columns."""
        return int(self._table.num_columns)

    def row(self, index: int) -> tuple[Any, ...]:
        """Values of one row as Python objects, in the order of the schema."""
        return tuple(column[index].as_py() for column in self._table.columns)

    def value(self, column: int, index: int) -> Any:
        """One value as an Arrow scalar."""
        return self._table.column(column)[index]

    def hashes(self, column: int, width: int) -> npt.NDArray[np.bytes_]:
        """A column of fixed-size binary values, whole, as an array of `S<width>`."""
        chunks = self._table.column(column).chunks
        parts = [np.frombuffer(chunk.buffers()[1], f"S{width}", len(chunk)) for chunk in chunks]
        return np.concatenate(parts) if parts else np.empty(0, f"S{width}")

    def lengths(self, column: int) -> npt.NDArray[np.int64]:
        """How long each row's list is, for a column of lists."""
        import pyarrow.compute as pc

        lengths: npt.NDArray[np.int64] = pc.list_value_length(self._table.column(column)).to_numpy().astype(np.int64)
        return lengths

    def texts(self, column: int) -> tuple[npt.NDArray[np.int64], Any]:
        """All texts of a column of texts or of lists of texts, as one Arrow array, and the row of each."""
        import pyarrow as pa
        import pyarrow.compute as pc

        column_of = self._table.column(column)
        if pa.types.is_list(column_of.type):
            counts = pc.fill_null(pc.list_value_length(column_of), 0).to_numpy()
            return np.repeat(np.arange(len(self)), counts), self.items(column)
        valid = pc.is_valid(column_of).to_numpy()
        return np.flatnonzero(valid), column_of.drop_null()

    def items(self, column: int) -> Any:
        """A column of lists of numbers: all numbers of all rows as one Arrow array."""
        import pyarrow.compute as pc

        return pc.list_flatten(self._table.column(column))


class RowSequence(Sequence[Item]):
    """Some rows of a `Store`, each made into an object when it is asked for."""

    def __init__(self, indices: npt.NDArray[np.int64]) -> None:
        self.indices = indices
        """Which rows are here, ascending, perhaps with repetitions; shape (number of items,)."""

    @abstractmethod
    def _read(self, row: int) -> Item:
        """Make the object of one row."""

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self._read(int(row)) for row in self.indices[index]]
        return self._read(int(self.indices[index]))


def data_cache(cache: Path | None) -> Path:
    """Folder of cached rows and tokens: the given one, else the user's."""
    return data_cache_dir() / "data" if cache is None else cache


def cached(folder: Path, schema: Any, build: Callable[[Writer], Mapping[str, Any]]) -> Store:
    """Open the cache entry `folder`, whose name covers everything that its content depends on.

    If it does not exist or is damaged, it is made: `build` adds all rows to the writer and returns facts for the JSON
    file.

    Raises:
        OutputError: The cache cannot be written.
    """
    if (store := _try_open(folder)) is not None:
        return store
    with locked(folder):
        # Another process may have made it while this one waited.
        if (store := _try_open(folder)) is not None:
            return store
        # Left by a killed process: nobody else holds the lock.
        for leftover in (folder, *folder.parent.glob(f".{folder.name}.*")):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
        with atomic_dir(folder) as temporary:
            _write(temporary, schema, build)
        return Store(folder)


def _try_open(folder: Path) -> Store | None:
    try:
        return Store(folder)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(folder: Path, schema: Any, build: Callable[[Writer], Mapping[str, Any]]) -> None:
    import pyarrow as pa

    with pa.OSFile(str(folder / TABLE), "wb") as sink, pa.ipc.new_file(sink, schema) as file:
        writer = Writer(file, schema)
        facts = build(writer)
        writer.flush()
    content = {"checksum": _checksum(folder / TABLE), "facts": facts}
    (folder / FACTS).write_text(json.dumps(content), "utf-8")


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            checksum = zlib.crc32(block, checksum)
    return checksum
