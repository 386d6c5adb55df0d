"""CSV with a header row, quoted as RFC 4180 says, separated by comma, semicolon, tab or vertical bar."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from lorahydra.data.problems import Fault, Problems, reading
from lorahydra.data.readers.text import BYTE_ORDER_MARK, MAX_LINE, TextFile
from lorahydra.errors import DataError, one_line

__all__ = ["read_csv"]

DELIMITERS = ",;\t|"
EXCEL_SEPARATOR = re.compile(r'"?sep=([,;|:^~\t])"?\s*', re.IGNORECASE)
"""A first line for Excel that names the separator of the other lines."""


class _Lines:
    """Lines of a CSV file for `csv.reader`; they are counted here, because a quoted field may span several."""

    def __init__(self, lines: Iterator[tuple[int, str]]) -> None:
        self._lines = lines
        self.number = 0
        self.begins_row = True
        """Whether the next line begins a row: a byte order mark there is that of a file that was appended."""

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        self.number, text = next(self._lines)
        if self.begins_row:
            text, self.begins_row = text.lstrip(BYTE_ORDER_MARK), False
        return text


def _sniff(header: str, suffix: str) -> str:
    """The delimiter that gives the header most columns; if several do, the one that the file's extension implies."""
    order = sorted(DELIMITERS, key=lambda delimiter: delimiter != ("\t" if suffix == ".tsv" else ","))
    return max(order, key=lambda delimiter: len(next(csv.reader([header], delimiter=delimiter), [])))


def read_csv(file: TextFile, problems: Problems) -> Iterator[tuple[int, object]]:
    """Yield the first line number and the fields of each row, all of them text.

    Lines end with LF, CR LF or CR, also mixed.

    Raises:
        DataError: The header is empty or names a column twice.
    """
    # Only raised, never lowered: the limit belongs to the whole process.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE))
    with reading(file.path) as place, file.open() as stream:
        lines = _Lines(file.lines(stream, problems, replace=True))
        first = next(lines, "")
        if separator := EXCEL_SEPARATOR.fullmatch(first):
            lines.begins_row = True
            rows = csv.reader(lines, delimiter=separator[1], strict=True)
        else:
            rows = csv.reader(chain([first], lines), delimiter=_sniff(first, file.path.suffix.lower()), strict=True)
        place.line = 2 if separator else 1
        try:
            names = next(rows, [])
            undecodable = problems.counts[Fault.UNDECODABLE]
            if undecodable:
                # A table whose columns have no names cannot be used.
                raise DataError(problems.first[0].message, path=file.path, line=problems.first[0].line)
            header = _header(names, file.path, place.line)
            place.line, lines.begins_row = lines.number + 1, True
            for row in rows:
                if problems.counts[Fault.UNDECODABLE] > undecodable:
                    # A line of this row could not be decoded, which has been reported.
                    undecodable = problems.counts[Fault.UNDECODABLE]
                # Spreadsheets also save the empty rows below a table.
                elif any(field.strip() for field in row):
                    if row == header:
                        problems.add(place.line, "repeats the header: were files joined? Remove this line")
                    elif len(row) == len(header):
                        yield place.line, dict(zip(header, row, strict=True))
                    else:
                        problems.add(place.line, f"has {len(row)} fields where the header has {len(header)}")
                place.line, lines.begins_row = lines.number + 1, True
        except csv.Error as error:
            # After a broken quote, nothing that follows can be trusted.
            problems.add(place.line, f"broken CSV: {error} (a quote inside a field is written twice)")


def _header(names: list[str], path: Path, line: int) -> list[str]:
    names = [name.strip(BYTE_ORDER_MARK + " \t") for name in names]
    if not any(names):
        raise DataError("the first line has no column names", path=path, line=line)
    # An index that pandas wrote has no name.
    names = [name or f"(column {number})" for number, name in enumerate(names, start=1)]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"the header has two columns named '{one_line(twice[0])}'", path=path, line=line)
    return names
