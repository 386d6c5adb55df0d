"""Checks an uploaded file as `lorahydra data check` does, in a process of its own with limits.

`python -m lorahydra.service.checking FILE` prints `{"report": …}` or `{"error": one line}`. A file that is made to
swell when it is read costs that process its life, and not the server.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lorahydra.service.errors import InvalidError

__all__ = ["check_file"]

SECONDS = 600
"""Longest check."""
MEMORY = 4 << 30
"""Bytes of address space."""
LARGEST_FILE = 8 << 30
"""Bytes of a file in the cache of read rows."""
MOST_COLUMNS = 1000
DELIMITERS = ",;\t"
HEADER_BYTES = 1 << 20
SEED = 42


def check_file(file: Path, shown: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The data report of a file.

    Args:
        file: It, under a name that the service made.
        shown: What the user calls it.
        overrides: Those of every job, of which `data.…` decide how a file is read.

    Returns:
        `DataReport.to_dict()`.

    Raises:
        InvalidError: It is no dataset, in one line.
    """
    command = [sys.executable, "-m", "lorahydra.service.checking", file.name]
    command += [override for override in overrides if override.startswith("data.")]
    try:
        done = subprocess.run(
            command, cwd=file.parent, capture_output=True, stdin=subprocess.DEVNULL, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise InvalidError(f"{shown} takes too long to be read: {SECONDS} s were not enough", "bad_dataset") from None
    try:
        answer = _renamed(json.loads(done.stdout.decode("utf-8", "replace")), file.name, shown)
    except ValueError:
        # It was killed, or ran out of the memory that it may have.
        raise InvalidError(f"{shown} cannot be read within {MEMORY >> 30} GiB of memory", "bad_dataset") from None
    if "error" in answer:
        raise InvalidError(str(answer["error"]), "bad_dataset")
    report: dict[str, Any] = answer["report"]
    return report


def _renamed(value: Any, name: str, shown: str) -> Any:
    """The value with the user's name of the file wherever the service's own stands in a text."""
    if isinstance(value, str):
        return value.replace(name, shown)
    if isinstance(value, list):
        return [_renamed(entry, name, shown) for entry in value]
    if isinstance(value, dict):
        return {key: _renamed(entry, name, shown) for key, entry in value.items()}
    return value


def main(name: str, overrides: Sequence[str]) -> None:
    """Print what is known of the file, as JSON."""
    from lorahydra.errors import LorahydraError

    for kind, most in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_FSIZE, LARGEST_FILE)):
        with suppress(ValueError):  # a lower limit is set already
            resource.setrlimit(kind, (most, most))
    os.nice(5)  # requests come first
    try:
        _few_columns(Path(name))
        answer: dict[str, Any] = {"report": _report(name, overrides)}
    except LorahydraError as error:
        answer = {"error": " ".join(str(error).split())}
    except MemoryError:
        return
    sys.stdout.write(json.dumps(answer))


def _report(name: str, overrides: Sequence[str]) -> dict[str, Any]:
    from lorahydra.config.compose import compose, literal
    from lorahydra.data import check

    config = compose(["data=local", f"data.train_file={literal(name)}", *overrides])
    report = check(config.data, config.seed, chat=None)
    # Which model it will be is not known yet.
    report.warnings = [warning for warning in report.warnings if not warning.startswith("no token lengths")]
    return report.to_dict()


def _few_columns(file: Path) -> None:
    """Refuse a table with so many columns that reading each of its rows would take long."""
    from lorahydra.errors import DataError

    if file.suffix in (".csv", ".tsv"):
        with file.open("rb") as stream:
            header = stream.readline(HEADER_BYTES).decode("utf-8", "replace")
        columns = 1 + max(header.count(delimiter) for delimiter in DELIMITERS)
    elif file.suffix == ".parquet":
        columns = _parquet_columns(file)
    else:
        return
    if columns > MOST_COLUMNS:
        raise DataError(f"has {columns} columns or more: at most {MOST_COLUMNS} are read", path=file, line=1)


def _parquet_columns(file: Path) -> int:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file) as table:
            return int(table.metadata.num_columns)
    except (pyarrow.ArrowException, OSError, ValueError):
        return 0  # the check itself says what is wrong


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
