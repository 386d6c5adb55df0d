r"""JSON objects in a text, also as language models write them, as long as they can be read in one way only.

Accepted beyond JSON: line breaks and tabs inside strings, escapes that JSON does not have (`\_`), trailing commas, `//`
and `/* */` comments, strings in single or typographic quotation marks, keys without quotation marks, Python's `True`
and `None`, and `4/5` or `80%` in the place of a number, which become strings. A string ends at the first mark that
could end it; if what follows does not fit the grammar, the whole object is unreadable. Nothing is guessed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

__all__ = ["BrokenObjectError", "DuplicateKeys", "objects"]

LOOKS_LIKE_JSON = re.compile(r"\{\s*[\"'“”„«]")
DEPTH = 50
"""Deepest nesting that is read."""
MARKS = {'"': '"', "'": "'", "“": "”“", "”": "”", "„": "“”", "«": "»"}
"""Each mark that opens a string, with those that may close it."""
GAP = re.compile(r"(?:\s+|//[^\n]{0,1000}(?=\n|$)|/\*[^*]{0,1000}\*/)*")
"""Comments have a limit, so that the time to read a text is linear in its length."""
NAME = re.compile(r"[^\W\d]\w*")
VALUE = re.compile(r"[+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?(?:\s*/\s*\d+(?:\.\d+)?|\s*%)?")
WORDS = {"true": True, "false": False, "null": None, "none": None}
ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}


class BrokenObjectError(ValueError):
    """An object begins but cannot be read to its end."""


class DuplicateKeys(dict[str, Any]):
    """An object in which a key occurs twice."""


def objects(text: str) -> Iterator[dict[str, Any]]:
    """The outermost objects in `text`; one in which a key occurs twice is a `DuplicateKeys`.

    Raises:
        BrokenObjectError: Something that looks like an object is broken or cut short; its inside may be a quotation, so
            neither it nor what follows it is read.
    """
    decoder = json.JSONDecoder(object_pairs_hook=_unique, strict=False)
    position = text.find("{")
    while position >= 0:
        try:
            found, position = decoder.raw_decode(text, position)
            yield found
        except (ValueError, RecursionError):
            try:
                reader = _Reader(text, position)
                found = reader.value()
                position = reader.position
                yield found
            except BrokenObjectError:
                if LOOKS_LIKE_JSON.match(text, position):
                    raise
                position += 1
        position = text.find("{", position)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    return found if len(found) == len(pairs) else DuplicateKeys(found)


class _Reader:
    """Reads one value from `position` on."""

    def __init__(self, text: str, position: int) -> None:
        self._text = text
        self.position = position
        self._depth = 0

    def value(self) -> Any:
        self._depth += 1
        if self._depth > DEPTH:
            raise BrokenObjectError("nested too deeply")
        match self._next():
            case "{":
                found: Any = _unique(self._list("}", self._pair))
            case "[":
                found = self._list("]", self.value)
            case mark if mark in MARKS:
                found = self._string(MARKS[mark])
            case _:
                found = self._bare()
        self._depth -= 1
        return found

    def _next(self) -> str:
        """The character after the gap; empty at the end."""
        gap = GAP.match(self._text, self.position)
        self.position = gap.end() if gap else self.position
        return self._text[self.position : self.position + 1]

    def _expect(self, characters: str) -> str:
        found = self._next()
        if not found or found not in characters:
            raise BrokenObjectError(f"{found!r} at {self.position}")
        self.position += 1
        return found

    def _list(self, end: str, item: Any) -> list[Any]:
        self.position += 1
        found: list[Any] = []
        while self._next() != end:
            found.append(item())
            if self._next() != end:
                self._expect(",")
        self.position += 1
        return found

    def _pair(self) -> tuple[str, Any]:
        mark = self._next()
        key = self._string(MARKS[mark]) if mark in MARKS else self._match(NAME)
        self._expect(":")
        return key, self.value()

    def _bare(self) -> Any:
        if self._next().isalpha():
            word = self._match(NAME).lower()
            if word not in WORDS:
                raise BrokenObjectError(f"{word!r} at {self.position}")
            return WORDS[word]
        written = self._match(VALUE)
        try:
            return json.loads(written.removeprefix("+"))
        except ValueError:
            return written

    def _match(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self._text, self.position)
        if match is None:
            raise BrokenObjectError(f"{self._next()!r} at {self.position}")
        self.position = match.end()
        return match[0]

    def _string(self, ends: str) -> str:
        self.position += 1
        written: list[str] = []
        pattern = re.compile(rf"[^\\{ends}]*")
        while True:
            written.append(self._match(pattern))
            mark = self._text[self.position : self.position + 1]
            if not mark:
                raise BrokenObjectError("a string without an end")
            self.position += 1
            if mark != "\\":
                break
            written.append(self._escape())
        if self._next() not in (",", ":", "}", "]"):
            raise BrokenObjectError(f"{self._next()!r} after a string at {self.position}")
        return "".join(written)

    def _escape(self) -> str:
        """The characters that an escape means; a backslash that begins no known escape stands for itself."""
        if code := re.compile("u([0-9a-fA-F]{4})").match(self._text, self.position):
            self.position = code.end()
            return chr(int(code[1], 16))
        mark = self._text[self.position : self.position + 1]
        self.position += 1
        if mark in ESCAPES:
            return ESCAPES[mark]
        return mark if mark in "\"'/\\“”„«»" else f"\\{mark}"
