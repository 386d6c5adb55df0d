"""Looks through the texts of a source for personal data and secrets, once for each content."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

from lorahydra.data.arrow_cache import Store, Writer, cached, data_cache
from lorahydra.data.personal.detectors import LABELS, LIKELY, SUSPICIOUS, Kind, find
from lorahydra.errors import DataError

__all__ = ["PersonalData", "scan"]

logger = logging.getLogger(__name__)

VERSION = 1
"""Part of the name of a cache entry: raise it when other things are found."""
SHOWN = 5
"""Rows whose places are kept; all are counted."""


@dataclass
class PersonalData:
    """How much of one kind of personal data or secrets a source holds, and where; never what."""

    kind: str
    """One of `email`, `phone`, `payment_card`, `inn`, `snils`, `iban`, `api_key`, `private_key`, `jwt`, `password`."""
    count: int = 0
    """Number of occurrences."""
    rows: int = 0
    """Rows that have any."""
    lines: list[int] = field(default_factory=list)
    """Lines (or rows, for formats without lines) of the first of them."""

    def warning(self, source: str, total: int) -> str:
        """One line about a source of `total` rows."""
        return (
            f"{source}: {self.rows} of {total} rows hold {LABELS[Kind(self.kind)]} "
            f"(first in lines {', '.join(map(str, self.lines))}): the model may repeat them"
        )

    def refusal(self, source: str, total: int, others: int = 0) -> DataError:
        """The error of a source of `total` rows that may not hold any; it has so many `others`."""
        message = (
            f"{self.rows} of {total} rows hold {LABELS[Kind(self.kind)]}, which data.pii=error refuses: remove them, "
            "or set data.pii=warn"
        )
        more = f" (and {others} more; run `lorahydra data check` to list them)" if others else ""
        return DataError(message + more, path=source, line=self.lines[0])


def scan(store: Store, key: str, columns: Sequence[int], lines: int, cache: Path | None = None) -> list[PersonalData]:
    """Find personal data and secrets in the texts of a table, or open what was found before from the cache.

    Args:
        store: The table.
        key: Name of the table's cache entry, which stands for its content.
        columns: Its columns of texts, or of lists of texts.
        lines: Its column of line numbers.
        cache: Folder of what was found; by default in the user's cache.

    Raises:
        OutputError: The cache cannot be written.
    """
    import pyarrow as pa

    def build(_writer: Writer) -> Mapping[str, Any]:
        return {kind: asdict(found) for kind, found in _find(store, columns, lines).items()}

    name = hashlib.sha256(f"{key} {VERSION}".encode()).hexdigest()
    facts = cached(data_cache(cache) / "personal" / name, pa.schema({}), build).facts
    return [PersonalData(**facts[kind]) for kind in Kind if kind in facts]


def _find(store: Store, columns: Sequence[int], lines: int) -> dict[str, PersonalData]:
    by_row: dict[int, Counter[Kind]] = {}
    for column in columns:
        for row, text in _suspicious(store, column):
            if kinds := find(text):
                by_row.setdefault(row, Counter()).update(kinds)
    found = {kind.value: PersonalData(kind.value) for kinds in by_row.values() for kind in kinds}
    for row, kinds in sorted(by_row.items()):
        for kind, count in kinds.items():
            entry = found[kind]
            entry.count += count
            entry.rows += 1
            if len(entry.lines) < SHOWN:
                entry.lines.append(store.value(lines, row).as_py())
    return found


def _suspicious(store: Store, column: int) -> Iterator[tuple[int, str]]:
    """Rows and texts that quick patterns cannot rule out."""
    import pyarrow.compute as pc

    rows, texts = store.texts(column)
    for patterns in ((SUSPICIOUS,), LIKELY):
        matching = reduce(pc.or_, (pc.match_substring_regex(texts, pattern) for pattern in patterns))
        rows, texts = rows[matching.to_numpy(zero_copy_only=False)], texts.filter(matching)
    yield from zip(rows.tolist(), texts.to_pylist(), strict=True)
