"""A dataset on its way in: written piece by piece, checked, and kept or removed without a trace."""

from __future__ import annotations

import os
import secrets
import shutil
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
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
NO_TEXT = ("Cc", "Cs", "Zl", "Zp")
"""Control characters, lone surrogates, ends of lines."""


def readable_name(text: str, what: str) -> str:
    """A name as it is kept and shown: one printable line.

    Raises:
        InvalidError: It is empty, too long, or has characters that are no text.
    """
    name = " ".join(text.split())
    if not name or len(name) > LONGEST_NAME or any(unicodedata.category(char) in NO_TEXT for char in name):
        raise InvalidError(f"{what} is a line of 1 to {LONGEST_NAME} characters")
    return name


class Upload:
    """One file on its way in; a context manager that leaves nothing behind unless it was kept.

    Args:
        folder: Where datasets are kept.
        name: What the user calls the file; its extension says what it is, and nothing else of it is used for a path.
        limit: Most bytes.

    Raises:
        InvalidError: The name is none, or its extension is not known.
    """

    def __init__(self, folder: Path, name: str, limit: int) -> None:
        # Browsers of old sent the whole path.
        self.name = readable_name(name.replace("\\", "/").rpartition("/")[2], "the name of the file")
        suffix = "." + self.name.rpartition(".")[2].lower()
        if suffix not in SUFFIXES or self.name.lower() == suffix:
            raise InvalidError(f"{self.name}: upload a file that ends in one of {', '.join(SUFFIXES)}", "bad_dataset")
        self.size = 0
        self._limit = limit
        self._kept = False
        self.path = folder / f"{INCOMING}{secrets.token_hex(12)}{suffix}"
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._stream = os.fdopen(
                os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb"
            )

    def __enter__(self) -> Upload:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()
        if not self._kept:
            self.path.unlink(missing_ok=True)

    def write(self, chunk: bytes) -> None:
        """Add bytes.

        Raises:
            TooLargeError: There are more than allowed.
            OutputError: The disk is full.
        """
        self.size += len(chunk)
        if self.size > self._limit:
            raise TooLargeError(f"{self.name} is over the limit of {self._limit} bytes")
        with writing(self.path.parent):
            self._stream.write(chunk)

    def check(self, overrides: Sequence[str], encoding: str | None = None) -> dict[str, Any]:
        """End writing, and check what came; text in another encoding is then kept as UTF-8.

        Args:
            overrides: Those of every job.
            encoding: Of the text, where the user says one.

        Returns:
            The data report.

        Raises:
            InvalidError: It cannot be trained on.
        """
        with writing(self.path.parent):
            self._stream.close()
        if encoding is not None and len(encoding) > LONGEST_ENCODING:
            raise InvalidError(f"encoding is a name of at most {LONGEST_ENCODING} characters", "bad_encoding")
        own = [] if encoding is None else [f"data.encoding={literal(encoding)}"]
        if own and any(override.startswith("data.encoding=") for override in overrides):
            raise InvalidError("this server reads all files in one encoding: leave encoding out", "bad_encoding")
        report = check_file(self.path, self.name, [*overrides, *own])
        if not report["ok"]:
            raise BadDatasetError(self.name, report)
        if encoding is not None and self.path.suffix != ".parquet":
            self._rewrite(encoding)
        return report

    def _rewrite(self, encoding: str) -> None:
        """Write text that has been checked as UTF-8, as every job reads it."""
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
        final = self.path.with_name(f"dataset-{self.path.name.removeprefix(INCOMING)}")
        self.path.rename(final)
        self._kept = True
        return final.name


class BadDatasetError(InvalidError):
    """A file that can be read and not be trained on.

    Args:
        name: Of the file.
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
    """Remove what uploads of a server that was killed left behind."""
    for left in folder.glob(f"{INCOMING}*"):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
