"""From a source to a checked table of conversations in the cache, one row at a time."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lorahydra.config.schema import DataConfig
from lorahydra.data.arrow_cache import Store, Writer, cached, data_cache
from lorahydra.data.columns import detect
from lorahydra.data.examples import KEY_BYTES, ROLES, Example, Message, equal_at_first, example_keys
from lorahydra.data.layouts import Layout
from lorahydra.data.messages import describe
from lorahydra.data.personal import scan
from lorahydra.data.problems import Fault, Problem, Problems, RowError
from lorahydra.data.readers import HEADER_ROW, Row, with_columns
from lorahydra.data.report import SourceReport
from lorahydra.data.schemes import known_columns
from lorahydra.data.sources import Source
from lorahydra.errors import DataError, library_errors, one_line, reason

__all__ = ["Rows", "ingest", "objects"]

logger = logging.getLogger(__name__)

VERSION = 5
"""Part of the cache key: raise it when the same bytes are read differently."""
MAX_COLUMNS = 1000
"""How many column names are kept if all rows of a file have different keys."""
LINE, ROLE_CODES, CONTENTS, PROMPT_KEY, EXAMPLE_KEY, EXTRAS, UNLEARNED, TOOLS, SHARED, REJECTED = range(10)
SHOWN = 20
"""How many names a warning lists."""
SYNONYMS = {"system_prompt": "system", "system_message": "system", "functions": "tools"}
"""Names of columns that a user probably wants to map with `data.columns`."""


@dataclass(frozen=True)
class Rows:
    """All valid rows of a source, on disk, and what was found in reading them."""

    source: str
    """The source as the user named it."""
    store: Store
    report: SourceReport
    problems: list[Problem]
    """The first problems; `report` counts them all."""

    def __len__(self) -> int:
        return len(self.store)

    def example(self, index: int) -> Example:
        """Read one row."""
        line, codes, contents, _, _, extras, unlearned, tools, shared, rejected = self.store.row(index)
        messages = tuple(
            Message(ROLES[code], content, extras[number] if extras else "", number not in (unlearned or ()))
            for number, (code, content) in enumerate(zip(codes, contents, strict=True))
        )
        other = (*messages[:shared], *_restored(rejected)) if rejected else ()
        return Example(messages, line, tools or "", self.source, other)

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
        first, others = self.problems[0], self.report.problems - 1
        more = f" (and {others} more; run `lorahydra data check` to list them)" if others else ""
        raise DataError(first.message + more, path=self.source, line=first.line, field=first.field)

    def require_impersonal(self) -> None:
        """Refuse a source with personal data or secrets.

        Raises:
            DataError: With the first kind and the number of others.
        """
        found = self.report.personal_data
        if found:
            raise found[0].refusal(self.source, len(self), others=len(found) - 1)

    def warnings(self) -> Iterator[str]:
        """What the source contains but is not used, in one line each."""
        if ignored := self.report.columns_ignored:
            hints = [f"data.columns.{SYNONYMS[c.lower()]}={c} uses it" for c in ignored if c.lower() in SYNONYMS]
            shown = ", ".join(ignored[:SHOWN])
            yield f"{self.source}: columns not used: {shown}" + (f" ({', '.join(hints)})" if hints else "")
        if keys := self.report.keys_ignored:
            yield f"{self.source}: keys of messages not used: {', '.join(keys[:SHOWN])}"
        if self.report.rows_cut:
            yield (
                f"{self.source}: answers of weight 0 at the end of {self.report.rows_cut} of {len(self)} rows are left "
                "out, with the turns that lead to them"
            )


def ingest(source: Source, config: DataConfig, cache: Path | None = None) -> Rows:
    """Read a source once and keep its valid rows in the cache.

    The cache key is made of the source's bytes and the options that matter, so the same content is parsed once,
    wherever it is.

    Raises:
        DataError: The source as a whole cannot be used: it is unreadable, has no rows, or has unknown columns.
        OutputError: The cache cannot be written.
    """
    content = source.content_hash()
    options = [VERSION, content, config.format, sorted(config.columns.renamed().items())]
    if len(config.train_files) > 1 and config.columns.renamed():
        options += ["one of several"]
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
    personal = [] if config.pii == "off" else scan(store, key, (CONTENTS, EXTRAS, TOOLS, REJECTED), LINE, cache)
    counts = facts.pop("counts")
    report = SourceReport(
        source.label,
        len(store),
        **facts,
        empty_answers=counts.get(Fault.EMPTY_ANSWER, 0),
        undecodable_lines=counts.get(Fault.UNDECODABLE, 0),
        problems=sum(counts.values()),
        personal_data=personal,
    )
    return Rows(source.label, store, report, problems)


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
            # Of a pair: how many messages both conversations have in common, and the others of the rejected one.
            "shared": pa.uint32(),
            "rejected": pa.list_(pa.string()),
        }
    )


def _read(source: Source, config: DataConfig, writer: Writer) -> Mapping[str, Any]:
    """Write the valid rows of a source and return the other facts about it."""
    problems = Problems()
    rows = objects(source.rows(known_columns(config.columns.renamed()), problems), problems)
    columns, rows = with_columns(rows)
    # Without a single object there is nothing to detect; what the source holds instead has been reported.
    mapping, several = config.columns.renamed(), len(config.train_files) > 1
    layout = detect(columns, config.format, mapping, source.label, several=several) if columns else None
    for number, row in rows:
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


def _restored(texts: Sequence[str]) -> list[Message]:
    """Messages from their roles, texts and extras, one after the other."""
    return [Message(role, text, extras) for role, text, extras in zip(*(texts[n::3] for n in range(3)), strict=True)]


def objects(rows: Iterator[Row], problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
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
        # A file may hold values of unexpected types.
        with library_errors(lambda error: RowError(f"cannot be used: {reason(error)}"), but=RowError):
            (messages, rejected), tools = layout.conversations(row), layout.tools(row)
    except RowError as error:
        problems.add(number, error.message, field=error.field, fault=error.fault)
        return
    keys = example_keys(messages, tools, rejected)
    codes = [ROLES.index(message.role) for message in messages]
    contents, extras = [message.content for message in messages], [message.extras for message in messages]
    unlearned = [number for number, message in enumerate(messages) if not message.learned]
    optional: tuple[Any, ...] = (extras if any(extras) else None, unlearned or None, tools or None)
    shared = equal_at_first(messages, rejected)
    other = [text for message in rejected[shared:] for text in (message.role, message.content, message.extras)]
    optional += (shared, other) if rejected else (None, None)
    size = sum(map(len, (*contents, *extras, tools, *other)))
    writer.add((number, codes, contents, keys.prompt, keys.example, *optional), size)
