"""CSV with a header row, quoted as RFC 4180 says, separated by comma, semicolon or tab."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from lorahydra.data.problems import Problems, reading
from lorahydra.data.text import MAX_LINE_BYTES, open_text, text_lines
from lorahydra.errors import DataError

__all__ = ["read_csv"]

DELIMITERS = (",", ";", "\t")


class _Lines:
    """Lines of a CSV file for `csv.reader`, counting them: a quoted field may span several."""

    def __init__(self, lines: Iterator[tuple[int, str]]) -> None:
        self._lines = lines
        self.number = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        self.number, text = next(self._lines)
        return text


def _sniff(header: str) -> str:
    """The delimiter that cuts the header into most columns; a comma where none does."""
    return max(DELIMITERS, key=lambda delimiter: len(next(csv.reader([header], delimiter=delimiter), [])))


def read_csv(path: Path, problems: Problems) -> Iterator[tuple[int, object]]:
    """Yield the first line number and the fields of each row, all of them text.

    Raises:
        DataError: The header is empty or names a column twice.
    """
    # Only raised, never lowered: the limit belongs to the whole process.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))
    with reading(path), open_text(path) as stream:
        place = stream.tell()
        first = next((text for _, text in text_lines(stream, Problems(), replace=True)), "")
        stream.seek(place)
        lines = _Lines(text_lines(stream, problems, replace=True))
        rows = csv.reader(lines, delimiter=_sniff(first), strict=True)
        start = 1
        try:
            header = _header(next(rows, []), path)
            start = lines.number + 1
            for row in rows:
                if len(row) > 1 or (row and row[0].strip()):
                    if len(row) == len(header):
                        yield start, dict(zip(header, row, strict=True))
                    else:
                        problems.add(start, f"has {len(row)} fields where the header has {len(header)}")
                start = lines.number + 1
        except csv.Error as error:
            # After a broken quote nothing that follows can be trusted.
            problems.add(start, f"broken CSV: {error} (a quote inside a field is written twice)")


def _header(names: list[str], path: Path) -> list[str]:
    names = [name.strip() for name in names]
    if not any(names):
        raise DataError("the first line has no column names", path=path, line=1)
    # An index that pandas wrote has no name.
    names = [name or f"(column {number})" for number, name in enumerate(names, start=1)]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"the header names the column '{twice[0]}' twice", path=path, line=1)
    return names
