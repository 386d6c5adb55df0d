"""File formats: rows of text files (CSV, JSON) and of columnar ones (Parquet, `datasets`), with their line numbers."""

from collections.abc import Iterator
from itertools import chain, islice
from typing import TypeVar

__all__ = ["HEADER_ROW", "Row", "with_columns"]

Row = tuple[int, object]
"""Line (or row) number, counted from 1, and value."""
HEADER_ROW = 0
"""Number of the row of nulls with which a columnar source names all its columns."""
ROWS_TO_DETECT = 16

Value = TypeVar("Value")


def with_columns(rows: Iterator[tuple[int, Value]]) -> tuple[set[str], Iterator[tuple[int, Value]]]:
    """The names of the columns in the first rows, and all the rows."""
    first = list(islice(rows, ROWS_TO_DETECT))
    return {name for _, row in first if isinstance(row, dict) for name in row}, chain(first, rows)
