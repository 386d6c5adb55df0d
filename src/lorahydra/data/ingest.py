"""From a source to a checked table of conversations in the cache, one row at a time."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lorahydra.config.schema import DataConfig
from lorahydra.data.arrow_cache import Store, Writer, cached
from lorahydra.data.columns import Layout, describe, detect, known_columns
from lorahydra.data.examples import KEY_BYTES, ROLES, Example, Message, example_keys
from lorahydra.data.problems import Problem, Problems, RowError
from lorahydra.data.sources import HEADER_ROW, Row, Source
from lorahydra.errors import DataError, library_errors, one_line, reason
from lorahydra.utils.files import cache_dir

__all__ = ["Rows", "data_cache", "ingest"]

logger = logging.getLogger(__name__)

VERSION = 3
"""Part of the cache key: raise it when the same bytes are read differently."""
ROWS_TO_DETECT = 16
MAX_COLUMNS = 1000
"""Names remembered from a file whose rows all have other keys."""
LINE, ROLE_CODES, CONTENTS, PROMPT_KEY, EXAMPLE_KEY, EXTRAS, UNLEARNED, TOOLS = range(8)


@dataclass(frozen=True)
class Rows:
    """All valid rows of a source, on disk, and what was found in reading them."""

    source: str
    store: Store
    format: str
    columns_used: dict[str, str]
    columns_ignored: list[str]
    keys_ignored: list[str]
    """Keys of messages that hold something and are not used."""
    rows_cut: int
    """Rows of which answers at the end are left out, since they carry no loss."""
    problems: list[Problem]
    """The first problems; `counts` has them all."""
    counts: dict[str, int]
    """Number of problems by `Fault`."""

    @property
    def total_problems(self) -> int:
        """Number of problems, the ones without text included."""
        return sum(self.counts.values())

    def __len__(self) -> int:
        return len(self.store)

    def example(self, index: int) -> Example:
        """Read one row."""
        line, codes, contents, _, _, extras, unlearned, tools = self.store.row(index)
        messages = tuple(
            Message(ROLES[code], content, extras[number] if extras else "", number not in (unlearned or ()))
            for number, (code, content) in enumerate(zip(codes, contents, strict=True))
        )
        return Example(messages, line, tools or "")

    def line(self, index: int) -> int:
        """Line (or row) number of one row."""
        return int(self.store.value(LINE, index).as_py())

    def prompt_keys(self) -> npt.NDArray[np.bytes_]:
        """Hash of everything before the last answer, for each row."""
        return self.store.hashes(PROMPT_KEY, KEY_BYTES)

    def example_keys(self) -> npt.NDArray[np.bytes_]:
        """Hash of the whole conversation, for each row."""
        return self.store.hashes(EXAMPLE_KEY, KEY_BYTES)

    def require_valid(self) -> None:
        """Refuse a source with any problem.

        Raises:
            DataError: With the first problem and the number of others.
        """
        if not self.problems:
            return
        first, others = self.problems[0], self.total_problems - 1
        more = f" (and {others} more; run `lorahydra data check` to list them)" if others else ""
        raise DataError(first.message + more, path=self.source, line=first.line, field=first.field)


def data_cache(cache: Path | None) -> Path:
    """Folder of cached rows and tokens: the given one, else the user's."""
    return cache_dir() / "data" if cache is None else cache


def ingest(source: Source, config: DataConfig, cache: Path | None = None) -> Rows:
    """Read a source once and keep its valid rows in the cache.

    The key is the source's bytes and the options that matter, so the same content is parsed once, wherever it
    lies.

    Raises:
        DataError: The source as a whole cannot be used: unreadable, without rows, or of unknown columns.
        OutputError: The cache cannot be written.
    """
    content = source.content_hash()
    options = [VERSION, content, config.format, sorted(config.columns.renamed().items())]
    key = hashlib.sha256(json.dumps(options).encode()).hexdigest()

    def build(writer: Writer) -> Mapping[str, Any]:
        logger.info("Reading %s", source.label)
        facts = _read(source, config, writer)
        if source.content_hash() != content:
            raise DataError("the file changed while it was read: run again", path=source.label)
        return facts

    store = cached(data_cache(cache) / "rows" / key, _schema(), build)
    facts = dict(store.facts)
    problems = [replace(Problem(**problem), source=source.label) for problem in facts.pop("problems")]
    return Rows(source.label, store, problems=problems, **facts)


def _schema() -> Any:
    import pyarrow as pa

    key = pa.binary(KEY_BYTES)
    return pa.schema(
        {
            "line": pa.int64(),
            "roles": pa.list_(pa.uint8()),
            "contents": pa.list_(pa.string()),
            "prompt_key": key,
            "example_key": key,
            # Null in rows without any.
            "extras": pa.list_(pa.string()),
            "unlearned": pa.list_(pa.uint32()),
            "tools": pa.string(),
        }
    )


def _read(source: Source, config: DataConfig, writer: Writer) -> Mapping[str, Any]:
    """Write the valid rows of a source and return what else is to be known of it."""
    problems = Problems()
    rows = _objects(source.rows(known_columns(config.columns.renamed()), problems), problems)
    first = list(islice(rows, ROWS_TO_DETECT))
    columns = {name for _, row in first for name in row}
    # Without a single object there is nothing to detect: what is there instead has been reported.
    layout = detect(columns, config.format, config.columns.renamed(), source.label) if columns else None
    for number, row in chain(first, rows):
        if layout is not None and number != HEADER_ROW:
            _add(writer, layout, number, row, problems)
        if len(columns) < MAX_COLUMNS:
            columns.update(row)
    if not writer.rows and not problems.total:
        raise DataError("has no rows", path=source.label)
    used = {name: column for name, column in layout.used.items() if column in columns} if layout else {}
    return {
        "format": layout.scheme.name if layout else "",
        "columns_used": used,
        "columns_ignored": sorted(map(one_line, columns - set(used.values()))),
        "keys_ignored": sorted(map(one_line, layout.ignored)) if layout else [],
        "rows_cut": layout.cut if layout else 0,
        "problems": [asdict(problem) for problem in problems.first],
        "counts": dict(problems.counts),
    }


def _objects(rows: Iterator[Row], problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows that are objects; others are reported."""
    for number, row in rows:
        if isinstance(row, dict) and row:
            yield number, row
        elif row == {}:
            problems.add(number, "is an object without fields")
        else:
            hint = " (pandas: orient='records')" if isinstance(row, list) else ""
            problems.add(number, f"holds {describe(row)} where an object with named fields is expected{hint}")


def _add(writer: Writer, layout: Layout, number: int, row: dict[str, Any], problems: Problems) -> None:
    try:
        # A file may hold values of types that nobody thought of.
        with library_errors(lambda error: RowError(f"cannot be used: {reason(error)}"), but=RowError):
            messages, tools = layout.messages(row), layout.tools(row)
    except RowError as error:
        problems.add(number, error.message, field=error.field, fault=error.fault)
        return
    keys = example_keys(messages, tools)
    contents = [message.content for message in messages]
    codes = [ROLES.index(message.role) for message in messages]
    extras = [message.extras for message in messages]
    unlearned = [number for number, message in enumerate(messages) if not message.learned]
    writer.add(
        (
            number,
            codes,
            contents,
            keys.prompt,
            keys.example,
            extras if any(extras) else None,
            unlearned or None,
            tools or None,
        ),
        sum(map(len, (*contents, *extras, tools))),
    )
