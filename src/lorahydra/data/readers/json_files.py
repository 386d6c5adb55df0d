"""JSON Lines and JSON arrays, read one row at a time.

JSON is read strictly: a repeated key, `NaN` and `Infinity` are errors, because readers disagree about what they mean.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any, NoReturn

from lorahydra.data.problems import Fault, Problems, reading
from lorahydra.data.readers import Row
from lorahydra.data.readers.pandas_json import frame_rows
from lorahydra.data.readers.text import BLOCK, BYTE_ORDER_MARK, MAX_LINE, TextFile, first_undecodable
from lorahydra.errors import DataError, one_line

__all__ = ["parse_json", "read_json", "read_json_lines"]

WHITESPACE = " \t\r\n"
MESSAGE_LISTS = ("messages", "conversations")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the key '{twice}' is repeated")
    return result


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_no_constant)


def _explain(error: ValueError | RecursionError, column: int | None = None) -> str:
    """What is wrong with a JSON text, in a few words."""
    if isinstance(error, RecursionError):
        return "broken JSON: nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        if "\0" in error.doc[error.pos : error.pos + 1]:
            return f"broken JSON at column {column or error.colno}: a NUL byte (is the file damaged, or UTF-16?)"
        return f"broken JSON at column {column or error.colno}: {error.msg}"
    return f"broken JSON: {error}"


def parse_json(text: str) -> object:
    """Parse one JSON text.

    Raises:
        ValueError: With a message for the user.
    """
    try:
        return DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(_explain(error)) from error


def read_json_lines(file: TextFile, problems: Problems) -> Iterator[Row]:
    """Yield the line number and value of each non-blank line; a broken line is reported and left out.

    A file that begins with a bracket is read as an array.
    """
    with reading(file.path) as place:
        if _first_character(file) == "[":
            yield from _array(file, problems)
            return
        with file.open() as stream:
            for place.line, text in file.lines(stream, problems):
                # A mark at the start of a line is that of a file that was appended.
                line = text.lstrip(BYTE_ORDER_MARK).rstrip()
                if not line:
                    continue
                try:
                    value = parse_json(line)
                except ValueError as error:
                    problems.add(place.line, str(error))
                    continue
                yield place.line, value


def read_json(file: TextFile, problems: Problems, columns: Collection[str] = ()) -> Iterator[Row]:
    """Yield the rows of a JSON array, of a table in a JSON object, or of JSON lines named `.json`.

    An array is read in blocks. An object is parsed as a whole, so it needs memory of a few times its size; its rows are
    numbered from 1 instead of by lines. If it could hold rows or columns, the names that `columns` may have decide.
    """
    with reading(file.path):
        first = _first_character(file)
        if first == "{" and not _is_json_lines(file):
            yield from _object(file, problems, columns)
            return
    if first not in ("{", "[", ""):
        raise DataError(f"expected a JSON array or object, found '{one_line(first)}'", path=file.path)
    yield from read_json_lines(file, problems)


def _first_character(file: TextFile) -> str:
    """The first character that is neither white space nor a byte order mark, or nothing."""
    with file.open() as stream:
        while block := stream.read(BLOCK):
            if text := block.lstrip(WHITESPACE + BYTE_ORDER_MARK):
                return text[0]
    return ""


def _is_json_lines(file: TextFile) -> bool:
    """Whether the first two non-blank lines look like one object each."""
    lines: list[str] = []
    with file.open() as stream:
        while len(lines) < 2 and (line := stream.readline(MAX_LINE)):
            if stripped := line.strip(WHITESPACE + BYTE_ORDER_MARK):
                lines.append(stripped)
    return len(lines) == 2 and lines[0].endswith("}") and lines[1].startswith("{")


def _decodable(file: TextFile, problems: Problems) -> bool:
    """Whether all of a document can be decoded; the first line that cannot is reported."""
    number = 1
    with file.open(translate=True) as stream:
        while line := stream.readline(MAX_LINE):
            if (place := first_undecodable(line)) is not None:
                problems.add(number, file.undecodable(line.rstrip("\n"), place), fault=Fault.UNDECODABLE)
                return False
            number += line.endswith("\n")
    return True


def _object(file: TextFile, problems: Problems, columns: Collection[str]) -> Iterator[Row]:
    """Rows of an object that holds one list of objects or a table, or the object itself as the only row."""
    if not _decodable(file, problems):
        return
    with file.open(translate=True) as stream:
        text = stream.read()
    try:
        value = DECODER.decode(text.lstrip(BYTE_ORDER_MARK))
    except (ValueError, RecursionError) as error:
        problems.add(getattr(error, "lineno", None), _explain(error))
        return
    try:
        table = frame_rows(value, frozenset(columns))
    except ValueError as error:
        raise DataError(str(error), path=file.path) from error
    if table is not None:
        yield from enumerate(table, start=1)
        return
    lists = [key for key, item in value.items() if isinstance(item, list) and key not in MESSAGE_LISTS]
    rows = [key for key in lists if value[key] and all(isinstance(item, dict) for item in value[key])]
    if len(rows) > 1:
        names = one_line(", ".join(rows))
        raise DataError(f"the object holds several lists ({names}): keep one, or save an array", path=file.path)
    yield from enumerate(value[rows[0]] if rows else [value], start=1)


def _array(file: TextFile, problems: Problems) -> Iterator[Row]:
    """Rows of an array with the line on which each begins; what follows a broken one cannot be read."""
    if not _decodable(file, problems):
        return
    with file.open(translate=True) as stream:
        window = _Window(stream)
        try:
            yield from window.values()
            if extra := window.peek():
                problems.add(window.line, f"broken JSON: '{extra}' after the end of the array")
        except (ValueError, RecursionError) as error:
            problems.add(*window.explain(error))


class _Window:
    """The part of a JSON text that is being read, with the line on which it begins."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        self._stream = stream
        self._text = ""
        self._place = 0
        self._lines_before = 0
        self._counted = 0

    @property
    def line(self) -> int:
        """1-based line of the current place."""
        self._lines_before += self._text.count("\n", self._counted, self._place)
        self._counted = self._place
        return self._lines_before + 1

    def peek(self) -> str:
        """The next character that is not white space, or nothing at the end."""
        while True:
            while self._place < len(self._text) and self._text[self._place] in WHITESPACE:
                self._place += 1
            if self._place < len(self._text) or not self._more(BLOCK):
                return self._text[self._place : self._place + 1]

    def values(self) -> Iterator[Row]:
        """Yield the values between the brackets; then the place is behind them."""
        self.peek()
        self._text = self._text.lstrip(BYTE_ORDER_MARK)
        self._skip()
        if self.peek() == "]":
            self._skip()
            return
        after = ","
        while after == ",":
            self.peek()
            line = self.line
            yield line, self._value()
            if (after := self.peek()) not in (",", "]"):
                raise json.JSONDecodeError("Expecting ',' or ']'", self._text, self._place)
            self._skip()

    def explain(self, error: ValueError | RecursionError) -> tuple[int, str]:
        """The line and the message of a parsing error."""
        line, column = self.line, None
        if isinstance(error, json.JSONDecodeError):
            line += self._text.count("\n", self._place, error.pos)
            column = error.pos - self._text.rfind("\n", 0, error.pos)
        return line, _explain(error, column)

    def _skip(self) -> None:
        """Move past the next character."""
        self.peek()
        self._place += 1

    def _value(self) -> object:
        """Parse one value, reading more while it seems incomplete and is not too long."""
        size = BLOCK
        while True:
            try:
                value, self._place = DECODER.raw_decode(self._text, self._place)
                return value
            except (ValueError, RecursionError):
                if len(self._text) - self._place > MAX_LINE or not self._more(size):
                    raise
                size *= 2

    def _more(self, size: int) -> bool:
        """Drop what was read and append about `size` characters; False at the end of the file."""
        if block := self._stream.read(size):
            self._lines_before = self.line - 1
            self._text = self._text[self._place :] + block
            self._place = self._counted = 0
        return bool(block)
