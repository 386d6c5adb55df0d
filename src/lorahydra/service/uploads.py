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
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from lorahydra.config.compose import literal
from lorahydra.service.checking import INCOMING, check_file
from lorahydra.service.errors import InvalidError, ServiceRefusal, TooLargeError, UnsupportedError
from lorahydra.utils.files import writing

__all__ = ["LONGEST_ENCODING", "SUFFIXES", "BadDatasetError", "Upload", "readable_name"]

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
LONGEST_NAME = 200
LONGEST_ENCODING = 40
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
        self._is_complete = False
        self._parts = self._beside = 0
        self._encoding = self._header = self._value = b""
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
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # what was not written yet does not fit on the disk
            if self._stream is not None:
                self._stream.close()
        self._incoming.cleanup()

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

    def check(self, overrides: Sequence[str], encoding: str | None = None) -> dict[str, Any]:
        """Check the file, once all of the request has been fed; text in another encoding is then converted to UTF-8.

        Args:
            overrides: Hydra overrides of every fine-tune.
            encoding: Encoding of the text; None is that which the form names, if any.

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
        encoding = encoding or self._encoding.decode("utf-8", "replace").strip() or None
        if encoding is not None and len(encoding) > LONGEST_ENCODING:
            raise InvalidError(f"encoding must be a name of at most {LONGEST_ENCODING} characters", "bad_encoding")
        named = [] if encoding is None else [f"data.encoding={literal(encoding)}"]
        if named and any(override.startswith("data.encoding=") for override in overrides):
            raise InvalidError("this server reads all files in one encoding: leave encoding out", "bad_encoding")
        report = check_file(self.path, self.name, [*overrides, *named])
        if not report["ok"]:
            raise BadDatasetError(self.name, report)
        if encoding is not None and self.path.suffix != ".parquet":
            self._rewrite(encoding)
        return report

    def keep(self) -> str:
        """Keep the file; returns its name in the folder."""
        self.path.chmod(0o600)  # others on this machine need not read it
        self.path.rename(self._folder / self.path.name)
        return self.path.name

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
        if self._field == b"encoding":
            self._encoding += data[start:end]

    def _end(self) -> None:
        self._is_complete = True


class BadDatasetError(InvalidError):
    """A file that can be read but not trained on.

    Args:
        name: Name of the file.
        report: The data report, which names each problem.
    """

    code = "bad_dataset"

    def __init__(self, name: str, report: dict[str, Any]) -> None:
        first, others = report["problems"][0], report["total_problems"] - 1
        line = f" line {first['line']}" if first["line"] is not None else ""
        column = f" field {first['field']}" if first["field"] else ""
        more = f" (and {others} more)" if others else ""
        super().__init__(f"{name}{line}{column}: {first['message']}{more}")
        self.report = report
