"""Reads text files in a stated encoding as lines of bounded size; any other file gives a clear error.

```python
file = TextFile(path, "windows-1251")
with reading(path), file.open() as stream:
    for number, line in file.lines(stream, problems): ...
```
"""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lorahydra.data.problems import MAX_PROBLEMS, Fault, Problems
from lorahydra.data.readers import encodings
from lorahydra.errors import DataError, one_line

__all__ = ["BLOCK", "BYTE_ORDER_MARK", "MAX_LINE", "UTF8", "TextFile", "first_undecodable"]

UTF8 = "utf-8"
"""The default encoding."""
UTF8_NAMES = ("utf-8", "utf-8-sig")
MAX_LINE = 16 * 1024 * 1024
"""Longest line in characters, or JSON value in an array: this bounds memory where a file is not what its name says."""
BLOCK = 1024 * 1024
START_BYTES = 4096
PREVIEW = 60
"""Characters of a text shown as it would read in another encoding."""
NEAR = 2000
"""Characters looked at around a byte that cannot be decoded."""

BYTE_ORDER_MARK = "\ufeff"
UNDECODABLE = re.compile("[\udc00-\udcff]")
"""Each stands for one byte, its value in the low eight bits; decoders never produce these characters otherwise."""
MARKING = "lorahydra.marking"


def _mark(error: UnicodeError) -> tuple[str, int]:
    """Error handler of decoders: like `surrogateescape`, but also for ASCII bytes that are invalid where they are."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "".join(chr(0xDC00 + byte) for byte in error.object[error.start : error.end]), error.end


codecs.register_error(MARKING, _mark)


def first_undecodable(text: str) -> int | None:
    """Position of the first byte that could not be decoded, in a text of `TextFile.open`; None if there is none."""
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None


@dataclass(frozen=True)
class TextFile:
    """A file of text."""

    path: Path
    encoding: str = UTF8
    """As the user gave it; a file that begins with a UTF-16 or UTF-32 byte order mark is read as that in any case."""

    def open(self, *, translate: bool = False) -> io.TextIOWrapper:
        """Open it; bytes that cannot be decoded become marks, which `first_undecodable` finds.

        With `translate`, each line end becomes a line feed; else lines keep theirs, which may be of any kind.

        Raises:
            DataError: The file is empty, or its beginning is not text in this encoding.
        """
        self._check()
        # The built-in handler does the same for UTF-8, and is many times faster on a file of random bytes.
        errors = "surrogateescape" if self._is_utf8 else MARKING
        return self.path.open(encoding=self._used, errors=errors, newline=None if translate else "", buffering=BLOCK)

    def lines(
        self, stream: io.TextIOWrapper, problems: Problems, *, replace: bool = False
    ) -> Iterator[tuple[int, str]]:
        """Yield each line with its 1-based number and its line end.

        A line that is too long is reported and left out. So is one that cannot be decoded, unless `replace` is set:
        then it is reported and yielded with replacement characters, for formats where a row spans lines.
        """
        number = 0
        while line := stream.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE and line[-1] not in "\r\n":
                problems.add(
                    number,
                    f"the line is longer than {MAX_LINE // 2**20} million characters: is the file what its name says?",
                )
                while line and line[-1] not in "\r\n":
                    line = stream.readline(BLOCK)
                continue
            place = first_undecodable(line)
            if place is not None:
                said = problems.counts[Fault.UNDECODABLE]
                # In a file in another encoding, one message is enough.
                message = "" if said >= (MAX_PROBLEMS if self._likely == UTF8 else 1) else self.undecodable(line, place)
                problems.add(number, message, fault=Fault.UNDECODABLE)
                if not replace:
                    continue
                line = UNDECODABLE.sub("\ufffd", line)
            yield number, line

    def undecodable(self, line: str, place: int) -> str:
        """A message: which byte of a line with its first mark at `place` cannot be decoded, and what to do."""
        name = "UTF-8" if self._is_utf8 else self._used
        what = f"byte 0x{ord(line[place]) & 0xFF:02X} at position {place + 1} of the line is not {name}"
        if self._used != self.encoding:
            return f"{what}, which the file's byte order mark says it is: is the file damaged, or not text?"
        if not self._is_utf8:
            return f"{what}: is data.encoding={self.encoding} the encoding of the whole file?"
        if self._likely is None:
            return f"{what}: is the file damaged, or not text?"
        if self._likely == UTF8:
            other = encodings.detect_encoding(_bytes(line[-NEAR:].strip()))
            shown = f" (it reads {_preview(line, place, other)} in {other})" if other not in (None, UTF8) else ""
            return f"{what}, while other lines are: this one is damaged or comes from another file{shown}"
        return (
            f"{what}: the file looks like {self._likely} text (here: {_preview(line, place, self._likely)}), so set "
            f"data.encoding={self._likely}, or save it as UTF-8 ({_iconv(self._likely, UTF8)})"
        )

    @cached_property
    def _start(self) -> bytes:
        with self.path.open("rb") as stream:
            return stream.read(START_BYTES)

    @cached_property
    def _used(self) -> str:
        """The encoding that the file is read in."""
        default = codecs.lookup(self.encoding).name in UTF8_NAMES
        return (encodings.marked(self._start) if default else None) or self.encoding

    @property
    def _is_utf8(self) -> bool:
        return codecs.lookup(self._used).name in UTF8_NAMES

    @cached_property
    def _likely(self) -> str | None:
        """The likely encoding of a file that is not UTF-8; determined once."""
        return encodings.detect_encoding(encodings.non_ascii_lines(self.path))

    def _check(self) -> None:
        """Refuse a file whose beginning is not text in this encoding."""
        start = self._start
        if not start:
            raise DataError("the file is empty", path=self.path)
        form = encodings.detect_form(start)
        if form and not any(encodings.same_encoding(self._used, name) for name in form):
            shown = one_line(start.decode(form[0], "replace").lstrip(BYTE_ORDER_MARK), PREVIEW)
            right = "leave data.encoding out" if encodings.marked(start) else f"set data.encoding={form[0]}"
            raise DataError(
                f'is {form[0].upper()} text (it begins with "{shown}"): {right}, or save it as UTF-8 '
                f"({_iconv(form[0], UTF8)})",
                path=self.path,
            )
        if form:
            return
        encodings.refuse_other_files(start, self.path)
        if encodings.same_encoding(self.encoding, "utf-16"):
            raise DataError(
                "has no byte order mark: set data.encoding to utf-16-le or utf-16-be, whichever it is", path=self.path
            )
        if not self._is_utf8 and encodings.is_utf8(encodings.non_ascii_lines(self.path)):
            raise DataError(
                f"is UTF-8 text, which data.encoding={self.encoding} would garble: leave data.encoding out, or save "
                f"the file in that encoding ({_iconv(UTF8, self.encoding)})",
                path=self.path,
            )


def _iconv(one: str, other: str) -> str:
    names = [re.sub("-([LB]E)$", r"\1", name.upper()) for name in (one, other)]
    return f"iconv -f {names[0]} -t {names[1]}"


def _bytes(marked: str) -> bytes:
    """The bytes of a part of a file that was read as UTF-8."""
    return marked.encode("utf-8", "surrogateescape")


def _preview(line: str, place: int, encoding: str) -> str:
    """How a line that was read as UTF-8 reads in another encoding, near the first byte that is not UTF-8."""
    begin = max(0, place - NEAR)
    before = _bytes(line[begin:place]).decode(encoding, "replace")
    text = _bytes(line[begin : place + NEAR]).decode(encoding, "replace")
    shown = one_line(text[max(0, len(before) - PREVIEW // 2) :], PREVIEW)
    return f'"{shown}"'
