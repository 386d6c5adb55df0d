"""An upload: written piece by piece, checked, and then kept, or removed without a trace."""

from __future__ import annotations

import secrets
import shutil
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from lorahydra.config.compose import literal
from lorahydra.service.checking import INCOMING, check_file
from lorahydra.service.errors import InvalidError, TooLargeError
from lorahydra.utils.files import writing

__all__ = ["LONGEST_ENCODING", "SUFFIXES", "Upload", "readable_name", "remove_leftovers"]

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
LONGEST_NAME = 200
LONGEST_ENCODING = 40
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
    """A file that is being uploaded; a context manager that leaves nothing behind unless the file was kept.

    Args:
        folder: Where datasets are kept.
        name: The user's name of the file; only its extension, which tells the format, becomes part of a path.
        limit: Largest size in bytes.

    Raises:
        InvalidError: The name is not valid, or its extension is not that of a dataset.
    """

    def __init__(self, folder: Path, name: str, limit: int) -> None:
        # Old browsers sent the whole path.
        self.name = readable_name(name.replace("\\", "/").rpartition("/")[2], "the name of the file")
        suffix = "." + self.name.rpartition(".")[2].lower()
        if suffix not in SUFFIXES or self.name.lower() == suffix:
            raise InvalidError(f"{self.name}: upload a file that ends in one of {', '.join(SUFFIXES)}", "bad_dataset")
        self.size = 0
        self._limit = limit
        self._kept = False
        with writing(folder):
            self._stream = NamedTemporaryFile(prefix=INCOMING, suffix=suffix, dir=folder, delete=False)  # noqa: SIM115
        self.path = Path(self._stream.name)

    def __enter__(self) -> Upload:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        if not self._kept:
            self.path.unlink(missing_ok=True)

    def write(self, chunk: bytes) -> None:
        """Add bytes.

        Raises:
            TooLargeError: There are more bytes than allowed.
            OutputError: The disk is full.
        """
        self.size += len(chunk)
        if self.size > self._limit:
            raise TooLargeError(f"{self.name} is over the limit of {self._limit} bytes")
        with writing(self.path.parent):
            self._stream.write(chunk)

    def check(self, overrides: Sequence[str], encoding: str | None = None) -> dict[str, Any]:
        """Finish writing, and check the file; text in another encoding is then converted to UTF-8.

        Args:
            overrides: Hydra overrides of every fine-tune.
            encoding: Encoding of the text, if the user named one.

        Returns:
            The data report.

        Raises:
            InvalidError: The file cannot be trained on.
        """
        with writing(self.path.parent):
            self._stream.close()
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

    def _rewrite(self, encoding: str) -> None:
        """Convert text that passed the check to UTF-8, in which every fine-tune reads it."""
        rewritten = self.path.with_name(f"{self.path.name}.utf-8")
        try:
            with (
                writing(self.path.parent),
                self.path.open(encoding=encoding, newline="") as source,
                rewritten.open("x", encoding="utf-8", newline="") as target,
            ):
                shutil.copyfileobj(source, target, BLOCK)
                rewritten.replace(self.path)
        finally:
            rewritten.unlink(missing_ok=True)
        self.size = self.path.stat().st_size

    def keep(self) -> str:
        """Keep the file; returns its name in the folder."""
        final = self.path.with_name(f"dataset-{secrets.token_hex(12)}{self.path.suffix}")
        self.path.rename(final)
        self._kept = True
        return final.name


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


def remove_leftovers(folder: Path) -> None:
    """Remove what uploads to a server that was killed left behind."""
    for path in folder.glob(f"{INCOMING}*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
