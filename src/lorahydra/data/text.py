"""Text files as UTF-8 lines of bounded size, with every way of not being that named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from lorahydra.data.problems import Fault, Problems
from lorahydra.errors import DataError

__all__ = ["BLOCK_BYTES", "MAX_LINE_BYTES", "open_text", "text_lines", "undecodable"]

MAX_LINE_BYTES = 16 * 1024 * 1024
"""Longest line, or JSON value in an array: it bounds memory on a file that is not what its name says."""
BLOCK_BYTES = 1024 * 1024

UTF8_BOM = b"\xef\xbb\xbf"
NOT_TEXT = {
    b"\x1f\x8b": "is gzip-compressed: decompress it first (gunzip)",
    b"PK\x03\x04": "is a zip archive (or an Excel workbook): unpack it, or export it as CSV",
    b"\x28\xb5\x2f\xfd": "is zstd-compressed: decompress it first (unzstd)",
    b"BZh": "is bzip2-compressed: decompress it first (bunzip2)",
    b"\xfd7zXZ": "is xz-compressed: decompress it first (unxz)",
    b"PAR1": "is a Parquet file: give it the extension .parquet",
    # UTF-32 before UTF-16, whose mark is its beginning.
    b"\xff\xfe\x00\x00": "is UTF-32 text: save it as UTF-8 (for example: iconv -f UTF-32 -t UTF-8)",
    b"\xff\xfe": "is UTF-16 text: save it as UTF-8 (for example: iconv -f UTF-16 -t UTF-8)",
    b"\xfe\xff": "is UTF-16 text: save it as UTF-8 (for example: iconv -f UTF-16 -t UTF-8)",
}


def open_text(path: Path) -> BinaryIO:
    """Open a text file for reading bytes, placed behind a UTF-8 byte order mark.

    Raises:
        DataError: The file is empty, or its first bytes say that it is not UTF-8 text.
    """
    stream = path.open("rb")
    start = stream.read(8)
    for magic, what in NOT_TEXT.items():
        if start.startswith(magic):
            stream.close()
            raise DataError(what, path=path)
    if not start:
        stream.close()
        raise DataError("the file is empty", path=path)
    stream.seek(len(UTF8_BOM) if start.startswith(UTF8_BOM) else 0)
    return stream


def undecodable(error: UnicodeDecodeError, position: int | None = None) -> str:
    """Say which byte is not UTF-8 and what to do; `position` is 1-based, by default that in the bytes."""
    return (
        f"byte 0x{error.object[error.start]:02X} at position {position or error.start + 1} of the line is "
        "not UTF-8: save the file as UTF-8 (for example: iconv -f LATIN1 -t UTF-8)"
    )


def text_lines(stream: BinaryIO, problems: Problems, *, replace: bool = False) -> Iterator[tuple[int, str]]:
    """Yield each line with its 1-based number and its line end.

    A line that is too long is reported and left out. So is one that is not UTF-8, unless `replace` is set:
    then it is reported and yielded with replacement characters, for formats where a row spans lines.
    """
    number = 0
    while raw := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(raw) > MAX_LINE_BYTES and not raw.endswith(b"\n"):
            problems.add(
                number,
                f"the line is longer than {MAX_LINE_BYTES // 2**20} MiB: is the file what its name says?",
            )
            while raw and not raw.endswith(b"\n"):
                raw = stream.readline(BLOCK_BYTES)
            continue
        try:
            yield number, raw.decode()
        except UnicodeDecodeError as error:
            problems.add(number, undecodable(error), fault=Fault.UNDECODABLE)
            if replace:
                yield number, raw.decode(errors="replace")
