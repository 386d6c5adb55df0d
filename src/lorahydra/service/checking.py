"""Checks an uploaded file as `lorahydra data check` does, in a process of its own that has limits.

`python -m lorahydra.service.checking FILE CACHE` prints `{"report": …}`, `{"error": one line}`, or `{"unavailable": one
line}` if the fault is with this machine. With a file that is refused comes `offer`, from `make_offer`. A file that is
made to swell when it is read kills that process and not the server, and the rows that were read are removed with the
folder CACHE.
"""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from lorahydra.errors import DataError, LorahydraError, OutputError, causes
from lorahydra.service.errors import InvalidError
from lorahydra.service.helpers import end_with_server, run_helper
from lorahydra.service.processes import NICENESS
from lorahydra.utils.files import writing

if TYPE_CHECKING:
    from lorahydra.config.schema import ExperimentConfig

__all__ = ["INCOMING", "BadDatasetError", "check_file"]

INCOMING = "incoming-"
"""Prefix of the names of all files and folders that are removed after the server was killed."""

SECONDS = 600
"""Time limit of a check."""
MEMORY = 4 << 30
"""Limit of the address space in bytes."""
SWELLING = 16
"""How many times larger than the file its rows may become: Parquet compresses text well."""
ROOM = 256 << 20
"""Size in bytes that the rows of any file may have."""
MOST_COLUMNS = 1000
DELIMITERS = b",;\t|"
HEADER_BYTES = 1 << 20


def check_file(file: Path, shown: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The data report of a file, `DataReport.to_dict()`.

    Args:
        file: The file, under a name that the service made.
        shown: The user's name of it.
        overrides: Hydra overrides of every fine-tune; those of `data` decide how a file is read.

    Raises:
        InvalidError: The file is not a dataset; one line says why, and there may be an offer.
        OutputError: There is no space for the rows that are read.
    """
    with writing(file.parent), TemporaryDirectory(prefix=INCOMING, dir=file.parent) as cache:
        command = [sys.executable, "-m", "lorahydra.service.checking", file.name, cache]
        command += [override for override in overrides if override.startswith("data.")]
        try:
            output = run_helper(command, SECONDS, cwd=file.parent)
        except subprocess.TimeoutExpired:
            raise InvalidError(
                f"{shown} takes too long to be read: {SECONDS} s were not enough", "bad_dataset"
            ) from None
    try:
        # The user's name of the file takes the place of the service's, wherever that stands.
        answer = json.loads(output.decode("utf-8", "replace").replace(file.name, json.dumps(shown)[1:-1]))
    except ValueError:
        # The process was killed, or ran out of the memory that it may use.
        answer = {"error": f"{shown} cannot be read within {MEMORY >> 30} GiB of memory"}
    if "unavailable" in answer:
        raise OutputError(answer["unavailable"])
    if "error" in answer:
        raise _with_offer(InvalidError(answer["error"], "bad_dataset"), answer)
    report: dict[str, Any] = answer["report"]
    if not report["ok"]:
        raise _with_offer(BadDatasetError(shown, report), answer)
    return report


def _with_offer(error: InvalidError, answer: dict[str, Any]) -> InvalidError:
    error.offer = answer.get("offer")
    return error


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


def main(name: str, cache: str, overrides: Sequence[str]) -> None:
    """Check the file and print the result as JSON."""
    end_with_server()
    most = max(ROOM, SWELLING * Path(name).stat().st_size)
    for kind, limit in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_FSIZE, most)):
        with suppress(ValueError):  # there is a lower limit already
            resource.setrlimit(kind, (limit, limit))
    os.nice(NICENESS)
    config = None
    try:
        _few_columns(Path(name))
        config = _config(name, overrides)
        answer: dict[str, Any] = {"report": _report(config, Path(cache))}
    except LorahydraError as error:
        line = " ".join(str(error).split())
        if any(isinstance(cause, OSError) and cause.errno == errno.EFBIG for cause in causes(error)):
            answer, config = {"error": f"{name} swells to more than {most >> 20} MiB when it is read"}, None
        else:
            answer = {"unavailable" if isinstance(error, OutputError) else "error": line}
    except MemoryError:
        return
    if config is not None and not answer.get("report", {}).get("ok"):
        answer["offer"] = _offer(config, overrides)
    sys.stdout.write(json.dumps(answer))


def _config(name: str, overrides: Sequence[str]) -> ExperimentConfig:
    from lorahydra.config.compose import compose, literal

    return compose(["data=local", f"data.train_file={literal(name)}", *overrides])


def _report(config: ExperimentConfig, cache: Path) -> dict[str, Any]:
    from lorahydra.data import check
    from lorahydra.data.loading import NO_LENGTHS

    report = check(config.data, config.seed, chat=None, cache=cache)
    # The model is not chosen yet.
    report.warnings = [warning for warning in report.warnings if warning != NO_LENGTHS]
    return report.to_dict()


def _offer(config: ExperimentConfig, overrides: Sequence[str]) -> dict[str, Any] | None:
    from lorahydra.service.offers import make_offer

    is_encoding_given = any(override.startswith("data.encoding=") for override in overrides)
    with suppress(LorahydraError, MemoryError, OSError):
        return make_offer(config.data, is_encoding_given=is_encoding_given)
    return None


def _few_columns(file: Path) -> None:
    """Refuse a table with so many columns that it would take long to read each of its rows."""
    if file.suffix in (".csv", ".tsv"):
        with file.open("rb") as stream:
            # Lines may end with CR alone, and the first may be a line for Excel that names the delimiter.
            first, *others = re.split(rb"[\r\n]+", stream.read(HEADER_BYTES), maxsplit=2)
        header = others[0] if others and b"sep=" in first[:16].lower() else first
        columns = 1 + max(header.count(delimiter) for delimiter in DELIMITERS)
    elif file.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        columns = 0
        with suppress(pyarrow.ArrowException, OSError, ValueError):  # the check says what is wrong
            columns = parquet.read_metadata(file).num_columns
    else:
        return
    if columns > MOST_COLUMNS:
        raise DataError(f"has {columns} columns or more: at most {MOST_COLUMNS} are read", path=file, line=1)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
