"""An upload as browsers and curl send it (multipart/form-data): written to disk while it arrives, checked, and kept.

The form parsers of Starlette and python-multipart know a file's name and size only when all of it has come, and keep it
in the system's temporary folder until then.
"""

from __future__ import annotations

import secrets
import shutil
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from lorahydra.config.compose import literal
from lorahydra.config.data import ColumnsConfig
from lorahydra.service.checking import INCOMING, check_file
from lorahydra.service.errors import InvalidError, ServiceRefusal, TooLargeError, UnsupportedError
from lorahydra.utils.files import writing

__all__ = [
    "LONGEST_COLUMNS",
    "LONGEST_ENCODING",
    "LONGEST_TEXT",
    "SUFFIXES",
    "Reading",
    "Upload",
    "column_overrides",
    "read_columns",
    "readable_name",
    "readable_text",
]

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
LONGEST_NAME, LONGEST_TEXT = 200, 10_000
LONGEST_ENCODING = 40
LONGEST_COLUMNS = 1000
COLUMNS = frozenset(column.name for column in fields(ColumnsConfig))
MOST_PARTS = 10
MOST_BESIDE = 1 << 16
"""Largest size of the form's other fields in bytes."""
BLOCK = 1 << 20
NOT_TEXT = ("Cc", "Cs", "Zl", "Zp")
"""Unicode categories of control characters, lone surrogates, and ends of lines and paragraphs."""


def readable_name(text: str, what: str) -> str:
    """A name as it is kept and shown, one printable line.

    Raises:
        InvalidError: It is empty or too long, or has characters that are not text.
    """
    name = " ".join(text.split())
    if not name or len(name) > LONGEST_NAME or any(unicodedata.category(char) in NOT_TEXT for char in name):
        raise InvalidError(f"{what} must be one line of 1 to {LONGEST_NAME} characters")
    return name


def readable_text(text: str, what: str) -> str:
    """A text of several lines as it is kept and shown; it may be empty.

    Raises:
        InvalidError: It is too long, or has characters that are not text.
    """
    text = text.replace("\r\n", "\n").strip()
    if len(text) > LONGEST_TEXT or any(unicodedata.category(char) in NOT_TEXT for char in text if char not in "\n\t"):
        raise InvalidError(f"{what} must be text of at most {LONGEST_TEXT} characters")
    return text


@dataclass(frozen=True)
class Reading:
    """How to read a file, where that cannot be told from the file."""

    encoding: str | None = None
    """Of its text, if that is not UTF-8."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Scheme column → column of the file, as `data.columns`; empty if the names are known ones."""


def read_columns(text: str | None) -> dict[str, str]:
    """Read `question=Frage,answer=Antwort`.

    Raises:
        InvalidError: It has another form, or a name on the left is not one of a scheme.
    """
    pairs = [pair.partition("=") for pair in text.split(",")] if text else []
    columns = {name.strip(): column.strip() for name, _, column in pairs}
    if len(text or "") > LONGEST_COLUMNS or not all(columns.values()) or not set(columns) <= COLUMNS:
        raise InvalidError(
            f"columns must be NAME=COLUMN, as in question=q,answer=a, with NAME one of {', '.join(sorted(COLUMNS))}",
            "bad_columns",
        )
    return columns


def column_overrides(columns: Mapping[str, str]) -> list[str]:
    """The overrides that map columns."""
    return [f"data.columns.{name}={literal(column)}" for name, column in columns.items()]


class Upload:
    """The file of a form; a context manager that leaves nothing behind unless the file was kept.

    `feed` it all of the request, then `check` and `keep` it.

    Args:
        folder: Where datasets are kept.
        content_type: The request's header.
        limit: Largest size of the file in bytes.

    Raises:
        UnsupportedError: The request is not a form.
    """

    name = ""
    """The user's name of the file, of which only the extension becomes part of a path."""
    size = 0
    """In bytes."""

    def __init__(self, folder: Path, content_type: str, limit: int) -> None:
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or not 0 < len(options.get(b"boundary", b"")) <= 200:
            raise UnsupportedError("send the file as the field 'file' of a form (multipart/form-data)")
        self._folder, self._limit = folder, limit
        with writing(folder):
            self._incoming = TemporaryDirectory(prefix=INCOMING, dir=folder, ignore_cleanup_errors=True)
        self._stream: IO[bytes] | None = None
        self._is_complete = self._is_held = False
        self._parts = self._beside = 0
        self._header = self._value = b""
        self._fields = {b"encoding": b"", b"columns": b""}
        self._disposition: Mapping[bytes, bytes] = {}
        self._field: bytes | None = None
        callbacks: Any = {
            "on_header_field": self._take_header,
            "on_header_value": self._take_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._begin_part,
            "on_part_data": self._take_data,
            "on_end": self._end,
        }
        self._parser = MultipartParser(options[b"boundary"], callbacks)

    def __enter__(self) -> Upload:
        self._is_held = False
        return self

    def __exit__(self, *_: object) -> None:
        if not self._is_held:
            self.close()

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the request.

        Raises:
            ServiceRefusal: They do not belong to a form, or the file is refused.
            OutputError: The disk is full.
        """
        try:
            with writing(self._folder):
                self._parser.write(chunk)
        except FormParserError as error:
            raise ServiceRefusal("the form cannot be read: its boundary or a header is broken", "bad_form") from error

    def check(self, overrides: Sequence[str], asked: Reading | None = None) -> dict[str, Any]:
        """Check the file, once all of the request has been fed; text in another encoding is then converted to UTF-8.

        Args:
            overrides: Hydra overrides of every fine-tune.
            asked: How to read it; what is left out is taken from the form, if it says so.

        Returns:
            The data report.

        Raises:
            ServiceRefusal: The form has no file, or did not arrive completely, or the file cannot be trained on.
        """
        if self._stream is None:
            raise InvalidError("the form has no file: send it as the field 'file'", "no_file")
        if not self._is_complete:
            raise ServiceRefusal("the form ends before its last boundary", "bad_form")
        with writing(self._folder):
            self._stream.close()
        asked = asked or Reading()
        encoding = asked.encoding or self._field_text(b"encoding")
        if encoding is not None and len(encoding) > LONGEST_ENCODING:
            raise InvalidError(f"encoding must be a name of at most {LONGEST_ENCODING} characters", "bad_encoding")
        columns = asked.columns or read_columns(self._field_text(b"columns"))
        named = [] if encoding is None else [f"data.encoding={literal(encoding)}"]
        if named and any(override.startswith("data.encoding=") for override in overrides):
            raise InvalidError("this server reads all files in one encoding: leave encoding out", "bad_encoding")
        report = check_file(self.path, self.name, [*overrides, *named, *column_overrides(columns)])
        if encoding is not None and self.path.suffix != ".parquet":
            self._rewrite(encoding)
        return report

    def keep(self) -> None:
        """Keep the file, under its name in the folder."""
        self.path.chmod(0o600)  # others on this machine need not read it
        self.path.rename(self._folder / self.path.name)

    def hold(self) -> None:
        """Keep the file beyond the context, until `close` or the end of the server."""
        self._is_held = True

    def close(self) -> None:
        """Remove what was not kept."""
        with suppress(OSError):  # what was not written yet does not fit on the disk
            if self._stream is not None:
                self._stream.close()
        self._incoming.cleanup()

    def _field_text(self, name: bytes) -> str | None:
        return self._fields[name].decode("utf-8", "replace").strip() or None

    def _rewrite(self, encoding: str) -> None:
        """Convert text that passed the check to UTF-8, in which every fine-tune reads it."""
        rewritten = self.path.with_name("utf-8")
        with (
            writing(self._folder),
            self.path.open(encoding=encoding, newline="") as source,
            rewritten.open("x", encoding="utf-8", newline="") as target,
        ):
            shutil.copyfileobj(source, target, BLOCK)
            rewritten.replace(self.path)
        self.size = self.path.stat().st_size

    def _take_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _take_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            _, self._disposition = parse_options_header(self._value)
        self._header = self._value = b""

    def _begin_part(self) -> None:
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise ServiceRefusal(f"the form has more than {MOST_PARTS} parts", "bad_form")
        options, self._disposition = self._disposition, {}
        self._field = options.get(b"name")
        if self._field == b"file":
            if self._stream is not None:
                raise InvalidError("the form has several fields 'file': send one file at a time", "several_files")
            self._open(options.get(b"filename", b"").decode("utf-8", "replace"))

    def _open(self, name: str) -> None:
        # Old browsers sent the whole path.
        self.name = readable_name(name.replace("\\", "/").rpartition("/")[2], "the name of the file")
        suffix = "." + self.name.rpartition(".")[2].lower()
        if suffix not in SUFFIXES or self.name.lower() == suffix:
            raise InvalidError(f"{self.name}: upload a file that ends in one of {', '.join(SUFFIXES)}", "bad_dataset")
        self.path = Path(self._incoming.name, f"dataset-{secrets.token_hex(12)}{suffix}")
        self._stream = self.path.open("xb")

    def _take_data(self, data: bytes, start: int, end: int) -> None:
        if self._field == b"file" and self._stream is not None:
            self.size += end - start
            if self.size > self._limit:
                raise TooLargeError(f"{self.name} is over the limit of {self._limit} bytes")
            self._stream.write(data[start:end])
            return
        self._beside += end - start
        if self._beside > MOST_BESIDE:
            raise TooLargeError(f"the form has more than {MOST_BESIDE} bytes beside its file")
        if self._field in self._fields:
            self._fields[self._field] += data[start:end]

    def _end(self) -> None:
        self._is_complete = True
