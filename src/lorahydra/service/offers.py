"""What could make a file readable that was refused: the encoding of its text, and which of its columns to use.

It runs in the process that checks the file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from lorahydra.config.data import DataConfig
from lorahydra.data.columns import detect
from lorahydra.data.ingest import objects
from lorahydra.data.problems import Problems
from lorahydra.data.readers import HEADER_ROW, encodings
from lorahydra.data.sources import Source, locate
from lorahydra.errors import DataError, one_line

__all__ = ["make_offer"]

OTHER_ENCODINGS = ("windows-1251", "koi8-r", "cp866", "windows-1252", "windows-1250")
"""Shown beside the likely encoding, where the text can be read in them."""
MOST_ENCODINGS = 4
START_BYTES = 4096
LINES = 3
"""Lines and rows of a preview."""
ROWS_TO_LOOK_AT = 16
CHARACTERS = 100
"""Of a line or a value in a preview."""
REQUESTS = (
    "вопрос",
    "запрос",
    "промпт",
    "инструкция",
    "question",
    "prompt",
    "query",
    "request",
    "input",
    "user",
    "instruct",
)
ANSWERS = ("ответ", "answer", "completion", "response", "output", "reply", "assistant", "target")
"""Parts of the names of columns that probably hold requests or answers."""


def make_offer(config: DataConfig, *, is_encoding_given: bool) -> dict[str, Any] | None:
    """What to ask the user about a file that was refused; None if it has a fault of another kind.

    Args:
        config: How the file was read.
        is_encoding_given: Whether the user has named the encoding.

    Returns:
        `encodings`: the likely ones, best first, each with `name` and the `text` that a part of the file becomes; and
        `columns`: all names, with `request` and `answer`, the places of those that probably hold them, and `rows`,
        some of the values. Each of both may be empty.
    """
    name = str(config.train_file)
    readings = [] if is_encoding_given or name.endswith(".parquet") else _encodings(Path(name))
    if readings:
        config = DataConfig(train_file=name, format=config.format, columns=config.columns, encoding=readings[0]["name"])
    offer: dict[str, Any] = {"encodings": readings, "columns": [], "rows": [], "request": None, "answer": None}
    with suppress(DataError):  # it has yet another fault, of which the check tells when it can be read
        source = locate(config)["train"][0]
        columns, rows = _peek(source)
        if len(columns) > 1 and rows and not _fits(columns, config, source):
            offer |= {"columns": columns, "rows": rows, **_guess(columns)}
    return offer if readings or offer["columns"] else None


def _encodings(path: Path) -> list[dict[str, str]]:
    """Encodings that the text may be in, best first; empty for UTF-8 with damaged lines, and for what is not text."""
    with path.open("rb") as stream:
        start = stream.read(START_BYTES)
    lines = encodings.non_ascii_lines(path)
    form = [] if encodings.marked(start) else encodings.detect_form(start)[:1]
    likely = form[0] if form else encodings.detect_encoding(lines) if lines else None
    if likely in (None, "utf-8"):
        return []
    content = start if form else lines
    texts: dict[str, str] = {}
    for name in (str(likely), *(() if form else OTHER_ENCODINGS)):
        text = _decoded(content, name)
        if text and text not in texts.values() and len(texts) < MOST_ENCODINGS:
            texts.setdefault(name, text)
    return [{"name": name, "text": text} for name, text in texts.items()]


def _decoded(content: bytes, encoding: str) -> str | None:
    """The first lines of a text; None if it has characters that the encoding does not."""
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        return None
    return "\n".join(one_line(line, CHARACTERS) for line in text.splitlines()[:LINES])


def _peek(source: Source) -> tuple[list[str], list[list[str]]]:
    """The names of all columns in their order, and values of the first rows."""
    problems = Problems()
    first = [row for _, row in islice(objects(source.rows(frozenset(), problems), problems), ROWS_TO_LOOK_AT)]
    columns = list(dict.fromkeys(name for row in first for name in row))
    rows = objects(source.rows(frozenset(columns), problems), problems)
    shown = islice((row for number, row in rows if number != HEADER_ROW), LINES)
    return columns, [[_shown(row.get(name)) for name in columns] for row in shown]


def _shown(value: object) -> str:
    if value is None:
        return ""
    return one_line(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str), CHARACTERS)


def _fits(columns: Sequence[str], config: DataConfig, source: Source) -> bool:
    try:
        detect(columns, config.format, config.columns.renamed(), source.label)
    except DataError:
        return False
    return True


def _guess(columns: Sequence[str]) -> dict[str, int]:
    """Places of the columns that probably hold the requests and the answers."""
    names = [column.casefold() for column in columns]

    def place(parts: Sequence[str]) -> int | None:
        return next((n for part in parts for n, name in enumerate(names) if part in name), None)

    request, answer = place(REQUESTS), place(ANSWERS)
    if request is None:
        request = 1 if answer == 0 else 0
    if answer is None or answer == request:
        answer = 1 if request == 0 else 0
    return {"request": request, "answer": answer}
