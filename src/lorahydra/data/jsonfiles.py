"""JSON Lines and JSON arrays, read one row at a time.

JSON is read strictly: a key that comes twice, `NaN` and `Infinity` are errors, because what they mean differs
between readers.
"""

from __future__ import annotations

import codecs
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from lorahydra.data.problems import Fault, Problems, one_line, reading
from lorahydra.data.text import BLOCK_BYTES, MAX_LINE_BYTES, open_text, text_lines, undecodable
from lorahydra.errors import DataError

__all__ = ["parse_json", "read_json", "read_json_lines"]

Row = tuple[int, object]
WHITESPACE = " \t\r\n"
MESSAGE_LISTS = ("messages", "conversations")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the key '{twice}' comes twice")
    return result


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_no_constant)


def _explain(error: ValueError | RecursionError, column: int | None = None) -> str:
    """Say in a few words what is wrong with a JSON text."""
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


def read_json_lines(path: Path, problems: Problems) -> Iterator[Row]:
    """Yield the line number and value of each non-blank line; a broken line is reported and left out.

    A file that begins with a bracket is read as an array.
    """
    with reading(path), open_text(path) as stream:
        if _first_character(stream) == "[":
            yield from _array(stream, problems)
            return
        for number, text in text_lines(stream, problems):
            if text.isspace():
                continue
            try:
                value = parse_json(text.rstrip())
            except ValueError as error:
                problems.add(number, str(error))
                continue
            yield number, value


def read_json(path: Path, problems: Problems) -> Iterator[Row]:
    """Yield the rows of a JSON array, of the one list in a JSON object, or of JSON lines named `.json`.

    An array is read in blocks. An object is parsed as a whole, so it needs memory of a few times its size;
    its rows are numbered from 1 instead of by lines.
    """
    with reading(path), open_text(path) as stream:
        first = _first_character(stream)
        if first == "{" and not _is_json_lines(stream):
            yield from _object(stream, path, problems)
            return
    if first not in ("{", "[", ""):
        raise DataError(f"expected a JSON array or object, found '{one_line(first)}'", path=path)
    yield from read_json_lines(path, problems)


def _first_character(stream: BinaryIO) -> str:
    """The first character that is not white space, or nothing; the stream's place stays."""
    place = stream.tell()
    character = ""
    while not character and (block := stream.read(BLOCK_BYTES)):
        character = block.lstrip()[:1].decode("ascii", errors="replace")
    stream.seek(place)
    return character


def _is_json_lines(stream: BinaryIO) -> bool:
    """Whether the first two non-blank lines look like one object each; the stream's place stays."""
    place = stream.tell()
    found: list[bytes] = []
    while len(found) < 2 and (line := stream.readline(MAX_LINE_BYTES)):
        if stripped := line.strip():
            found.append(stripped)
    stream.seek(place)
    return len(found) == 2 and found[0].endswith(b"}") and found[1].startswith(b"{")


def _object(stream: BinaryIO, path: Path, problems: Problems) -> Iterator[Row]:
    """Rows of an object that holds one list of objects, or the object itself as the only row."""
    raw = stream.read()
    try:
        value = DECODER.decode(raw.decode())
    except UnicodeDecodeError as error:
        position = error.start - raw.rfind(b"\n", 0, error.start)
        line = raw.count(b"\n", 0, error.start) + 1
        problems.add(line, undecodable(error, position), fault=Fault.UNDECODABLE)
        return
    except (ValueError, RecursionError) as error:
        problems.add(getattr(error, "lineno", None), _explain(error))
        return
    lists = [key for key, item in value.items() if isinstance(item, list) and key not in MESSAGE_LISTS]
    rows = [key for key in lists if value[key] and all(isinstance(item, dict) for item in value[key])]
    if len(rows) > 1:
        raise DataError(f"the object holds several lists ({', '.join(rows)}): keep one, or save an array", path=path)
    yield from enumerate(value[rows[0]] if rows else [value], start=1)


def _array(stream: BinaryIO, problems: Problems) -> Iterator[Row]:
    """Rows of an array with the line that each begins on; what follows a broken one cannot be read."""
    window = _Window(stream)
    try:
        window.skip()
        if window.peek() == "]":
            window.skip()
        else:
            yield from window.values()
        if extra := window.peek():
            problems.add(window.line, f"broken JSON: '{extra}' after the end of the array")
    except UnicodeDecodeError as error:
        problems.add(*window.locate(error), fault=Fault.UNDECODABLE)
    except (ValueError, RecursionError) as error:
        problems.add(*window.explain(error))


class _Window:
    """The part of a JSON text being read, with the line it begins on."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
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
            if self._place < len(self._text) or not self._more(BLOCK_BYTES):
                return self._text[self._place : self._place + 1]

    def skip(self) -> None:
        """Move past the next character."""
        self.peek()
        self._place += 1

    def values(self) -> Iterator[Row]:
        """Yield the values up to and with the closing bracket."""
        while True:
            self.peek()
            line = self.line
            yield line, self._value()
            if (after := self.peek()) not in (",", "]"):
                raise json.JSONDecodeError("Expecting ',' or ']'", self._text, self._place)
            self.skip()
            if after == "]":
                return

    def _value(self) -> object:
        """Parse one value, reading on while it seems incomplete and is not too long."""
        size = BLOCK_BYTES
        while True:
            try:
                value, self._place = DECODER.raw_decode(self._text, self._place)
                return value
            except (ValueError, RecursionError):
                if len(self._text) - self._place > MAX_LINE_BYTES or not self._more(size):
                    raise
                size *= 2

    def _more(self, size: int) -> bool:
        """Drop what was read and append about `size` bytes; False at the end of the file."""
        block = self._stream.read(size)
        text = self._decode(block, final=not block)
        if not block:
            return False
        self._lines_before = self.line - 1
        self._text = self._text[self._place :] + text
        self._place = self._counted = 0
        return True

    def explain(self, error: ValueError | RecursionError) -> tuple[int, str]:
        """The line and the message of a parsing error."""
        line, column = self.line, None
        if isinstance(error, json.JSONDecodeError):
            line += self._text.count("\n", self._place, error.pos)
            column = error.pos - self._text.rfind("\n", 0, error.pos)
        return line, _explain(error, column)

    def locate(self, error: UnicodeDecodeError) -> tuple[int, str]:
        """The line and the message of a decoding error in the block that was read last."""
        before = error.object[: error.start]
        line = self.line + self._text.count("\n", self._place) + before.count(b"\n")
        position = error.start - before.rfind(b"\n")
        if b"\n" not in before:
            position += len(self._text) - self._text.rfind("\n") - 1
        return line, undecodable(error, position)
