"""Which encoding a text is in, judged by its bytes, so that an error can name the right one."""

from __future__ import annotations

import codecs
import re
import unicodedata
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from lorahydra.errors import DataError

if TYPE_CHECKING:
    from charset_normalizer import CharsetMatch

__all__ = [
    "detect_encoding",
    "detect_form",
    "is_utf8",
    "marked",
    "non_ascii_lines",
    "refuse_other_files",
    "same_encoding",
]

NAMES = (
    *("windows-1251", "koi8-r", "cp866", "windows-1252", "shift_jis", "cp932", "gbk", "gb18030", "big5", "euc-jp"),
    *("euc-kr", "windows-1250", "windows-1253", "windows-1254", "windows-1255", "windows-1256", "iso-8859-5"),
    *("mac-cyrillic", "cp850"),
)
CANDIDATES = {codecs.lookup(name).name.replace("-", "_"): name for name in NAMES}
"""Encodings that are told apart, and their common names. Of two that fit equally well, the earlier one wins."""
SEVERAL_BYTES = ("shift_jis", "cp932", "gbk", "gb18030", "big5", "euc_jp", "euc_kr")
CLOSE_MESS = 0.05
"""Two texts in one-byte encodings count as equally clean within this difference."""
RARER = 0.02
"""How much more a text must resemble a language for each step down the list of candidates."""
SAMPLE_BYTES = 32 * 1024
SCANNED_BYTES = 8 * 1024 * 1024
FEW_SEQUENCES = 4
"""Fewer letters of more than one byte may fit UTF-8 by accident."""

NOT_TEXT = {
    b"\x1f\x8b": "is gzip-compressed: decompress it first (gunzip)",
    b"PK\x03\x04": "is a zip archive (or an Excel workbook): unpack it, or export it as CSV",
    b"\xd0\xcf\x11\xe0": "is an old Excel or Word document: export it as CSV",
    b"\x28\xb5\x2f\xfd": "is zstd-compressed: decompress it first (unzstd)",
    b"BZh": "is bzip2-compressed: decompress it first (bunzip2)",
    b"\xfd7zXZ": "is xz-compressed: decompress it first (unxz)",
    b"PAR1": "is a Parquet file: give it the extension .parquet",
    b"PARE": "is an encrypted Parquet file: save it without encryption",
    b"ARROW1": "is an Arrow (Feather) file: save it as Parquet",
    b"SQLite format 3\0": "is an SQLite database: export the table as CSV",
}
"""First bytes of files that are not what their extension says."""
MARKS = {
    # UTF-32 before UTF-16, whose mark is its beginning.
    codecs.BOM_UTF32_LE: ("utf-32", "utf-32-le"),
    codecs.BOM_UTF32_BE: ("utf-32", "utf-32-be"),
    codecs.BOM_UTF16_LE: ("utf-16", "utf-16-le"),
    codecs.BOM_UTF16_BE: ("utf-16", "utf-16-be"),
}
EAST_ASIAN = ("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "FULLWIDTH", "HANGUL", "IDEOGRAPHIC")
ISO_2022 = re.compile(rb"\x1b\$[@B]")
UTF16 = ("utf-16-le", "utf-16-be")


def same_encoding(one: str, other: str) -> bool:
    """Whether two names mean the same encoding."""
    return codecs.lookup(one).name == codecs.lookup(other).name


def refuse_other_files(start: bytes, path: Path, but: bytes = b"") -> None:
    """Refuse a file whose first bytes show that it is something else; `but` is the beginning that is expected.

    Raises:
        DataError: It is something else; the message says what.
    """
    for magic, what in NOT_TEXT.items():
        if magic != but and start.startswith(magic):
            raise DataError(what, path=path)


def detect_form(start: bytes) -> tuple[str, ...]:
    """Encodings that the form of a file's first bytes proves, the most common first; none for plain or one-byte text.

    They have to be an even number of bytes, or the whole file.
    """
    for mark, names in MARKS.items():
        if start.startswith(mark):
            return names
    if ISO_2022.search(start) and start.isascii():
        return ("iso-2022-jp",)
    if 0 not in start:
        return ()
    for name, high in (("utf-32-le", (2, 3)), ("utf-32-be", (0, 1))):
        if len(start) >= 8 and not any(start[place::4].strip(b"\0") for place in high):
            return (name,)
    name = max(UTF16, key=lambda name: _plain_share(start, name))
    zeros = start[name == "utf-16-le" :: 2].count(0)
    # In western text every second byte is zero; in other text only spaces, punctuation and line ends have one, and
    # the other bytes are not text.
    western = 5 * zeros >= len(start)
    rest = start.replace(b"\0", b"")
    binary = re.search(rb"[\x01-\x08\x0e-\x1f]", rest) or not _decodes(rest, "utf-8")
    if zeros < 2 or 100 * zeros < len(start) or not (western or binary):
        return ()
    return (name,) if _plain_share(start, name) > 0 else ()


def marked(start: bytes) -> str | None:
    """`utf-16` or `utf-32`, where a file begins with the byte order mark of one, which no other text begins with."""
    return next((names[0] for mark, names in MARKS.items() if start.startswith(mark)), None)


def _plain_share(content: bytes, encoding: str) -> float:
    """Share of ASCII among the characters; 0 where there are control or other characters that no text has."""
    text = codecs.getincrementaldecoder(encoding)("replace").decode(content)
    printable = sum(char.isprintable() or char in "\t\r\n" for char in text)
    if "\0" in text or printable < 0.98 * len(text):
        return 0.0
    return sum(char.isascii() for char in text) / len(text)


def non_ascii_lines(path: Path) -> bytes:
    """The first lines of a file that are not plain ASCII, at most about 32 KiB of them."""
    lines, size, scanned = [], 0, 0
    with path.open("rb") as stream:
        while size < SAMPLE_BYTES and scanned < SCANNED_BYTES and (line := stream.readline(SAMPLE_BYTES)):
            scanned += len(line)
            if not line.isascii():
                size += len(line)
                # Where a long line is cut, a character may be.
                lines += (line if line.endswith(b"\n") else re.sub(rb"[\x80-\xff]+$", b"", line)).splitlines()
    return b"\n".join(line for line in lines if not line.isascii())


def is_utf8(lines: bytes) -> bool:
    """Whether lines with letters beyond ASCII are certainly UTF-8."""
    return _decodes(lines, "utf-8") and sum(not char.isascii() for char in lines.decode()) >= FEW_SEQUENCES


def detect_encoding(lines: bytes) -> str | None:
    """The common name of the most likely encoding of lines with bytes beyond ASCII, of which a few words are enough.

    It is `utf-8` where most of the lines are UTF-8, and None if none fits.
    """
    # Imported here because only an error message needs it.
    from charset_normalizer import from_bytes

    parts = lines.split(b"\n")
    if 2 * sum(_decodes(part, "utf-8") for part in parts) >= len(parts):
        return "utf-8"
    fitting = [name for name in CANDIDATES if _decodes(lines, name)]
    matches = list(from_bytes(lines, cp_isolation=fitting, threshold=1.0)) if fitting else []
    if not matches:
        return None
    errors = {id(match): _implausible(str(match)) for match in matches}
    plain = [match for match in matches if errors[id(match)] == min(errors.values())]
    cleanest = min(plain, key=lambda match: match.chaos)
    mess = cleanest.chaos + (0 if cleanest.encoding in SEVERAL_BYTES else CLOSE_MESS)
    clean = [match for match in plain if match.chaos <= mess]
    best = min(clean, key=lambda match: _order(match) * RARER - match.coherence)
    return list(CANDIDATES.values())[_order(best)]


def _order(match: CharsetMatch) -> int:
    """Place among the candidates of the first encoding that gives the same text."""
    names = list(CANDIDATES)
    return min(names.index(name) for name in match.could_be_from_charset if name in names)


def _implausible(text: str) -> int:
    """Count what no language has: two alphabets or symbols in a word, capitals after or instead of small letters."""
    letters = [char for char in text if not char.isascii() and char.isalpha()]
    capitals = sum(char.isupper() for char in letters)
    small = sum(char.islower() for char in letters)
    return max(0, capitals - small) + sum(
        _script(one) != _script(two) or (one.islower() and two.isupper())
        for one, two in pairwise(text)
        if not (one.isascii() and two.isascii())
        and {unicodedata.category(one)[0], unicodedata.category(two)[0]} <= {*"LSN"}
    )


def _script(char: str) -> str:
    name = unicodedata.name(char, "").partition(" ")[0]
    return "CJK" if name in EAST_ASIAN else name


def _decodes(content: bytes, encoding: str) -> bool:
    try:
        content.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True
