"""Files of prompts to answer: datasets with or without answers, and plain text with a prompt on each line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lorahydra.config.schema import DataConfig
from lorahydra.data.columns import detect_prompts
from lorahydra.data.examples import Message
from lorahydra.data.ingest import objects
from lorahydra.data.problems import Problems, RowError, reading
from lorahydra.data.readers import HEADER_ROW, with_columns
from lorahydra.data.readers.text import BYTE_ORDER_MARK, UTF8, TextFile
from lorahydra.data.schemes import known_columns
from lorahydra.data.sources import locate
from lorahydra.errors import DataError

__all__ = ["read_prompts"]

TEXT = ".txt"


def read_prompts(file: str, encoding: str = UTF8) -> list[tuple[Message, ...]]:
    """Read the prompts of a file, in its order: conversations up to the message that is to be answered.

    Args:
        file: Text (`.txt`) with a prompt on each line that is not blank, or what `data.train_file` takes. The columns
            are detected as in a dataset; answers are optional and left out.
        encoding: The encoding of its text, as `data.encoding`.

    Raises:
        ConfigError: There is no such encoding.
        DataError: The file or one of its rows cannot be used.
    """
    config = DataConfig(train_file=file, encoding=encoding)
    problems = Problems()
    path = Path(file).expanduser()
    prompts = list(
        _lines(TextFile(path, encoding), problems) if path.suffix.lower() == TEXT else _rows(config, problems)
    )
    if problems.total:
        first = problems.first[0]
        raise DataError(first.message, path=file, line=first.line, field=first.field)
    if not prompts:
        raise DataError("has no prompts", path=file)
    return prompts


def _lines(file: TextFile, problems: Problems) -> Iterator[tuple[Message, ...]]:
    with reading(file.path), file.open() as stream:
        for _, line in file.lines(stream, problems):
            if text := line.lstrip(BYTE_ORDER_MARK).strip():
                yield (Message("user", text),)


def _rows(config: DataConfig, problems: Problems) -> Iterator[tuple[Message, ...]]:
    source = locate(config)["train"][0]
    columns, rows = with_columns(objects(source.rows(known_columns({}), problems), problems))
    layout = detect_prompts(columns, source.label) if columns else None
    for number, row in rows:
        try:
            if layout is not None and number != HEADER_ROW:
                yield layout.question(row)
        except RowError as error:
            problems.add(number, error.message, field=error.field)
