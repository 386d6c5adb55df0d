"""Where rows come from: the files and hub datasets that a `DataConfig` names."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from lorahydra.config.schema import DataConfig
from lorahydra.data.problems import Problems, reading
from lorahydra.data.readers import Row, columnar
from lorahydra.data.readers.csv_files import read_csv
from lorahydra.data.readers.json_files import read_json, read_json_lines
from lorahydra.data.readers.text import UTF8, TextFile
from lorahydra.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["DEMO", "REPLAY", "SPLITS", "Source", "locate"]

SPLITS = ("train", "validation", "test")
REPLAY = "replay"
"""Name of the source that `data.replay` adds to the training split."""
DEMO = "demo"
"""`data.train_file` that stands for the dataset shipped with lorahydra."""

TEXT_READERS = {".jsonl": read_json_lines, ".ndjson": read_json_lines, ".csv": read_csv, ".tsv": read_csv}
SUFFIXES = (*TEXT_READERS, ".json", ".parquet")
COMPRESSED = (".gz", ".zip", ".bz2", ".xz", ".zst", ".7z", ".tar")


@dataclass(frozen=True)
class Source:
    """Rows of one split, which can be read any number of times."""

    label: str
    """The source as the user named it."""
    how: str
    """What affects how its files are read, besides their content; part of the content's hash."""
    files: Callable[[], list[Path]]
    rows: Callable[[Collection[str], Problems], Iterator[Row]]
    """Yields (line or row number, value) for each readable row; what cannot be read goes to the problems.

    A columnar source leaves out columns that are not among the given ones, and first yields `HEADER_ROW`.
    """

    def content_hash(self) -> str:
        """Hex SHA-256 of the files that the rows are read from, and of how they are read."""
        digest = hashlib.sha256(self.how.encode())
        for path in self.files():
            with reading(path), path.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()


def locate(config: DataConfig) -> dict[str, list[Source]]:
    """Find the sources of each split that has its own, and that of `REPLAY`; `train` may have several.

    Raises:
        DataError: A file is missing, is of an unknown kind or is not a regular file, or is given twice.
    """
    files = config.train_files
    if len(files) > 1:
        sources = {"train": [_open(config, file, "train", config.train_split) for file in files]}
        _require_distinct(files)
    else:
        sources = {}
    for name in SPLITS:
        if name in sources:
            continue
        file, split = getattr(config, f"{name}_file"), getattr(config, f"{name}_split")
        if name == "train" or (file is None and files == [DEMO]):
            file = files[0] if files else None
        if file is None and split is None:
            continue
        if file is None and config.hub_name is not None:
            sources[name] = [_hub(config, config.hub_name, split)]
        elif file is None and len(files) > 1:
            raise DataError(f"data.{name}_split={split} needs data.{name}_file, since there are several training files")
        else:
            sources[name] = [_open(config, file or files[0], name, split or name)]
    if config.replay.file is not None:
        sources[REPLAY] = [_open(config, config.replay.file, "train", config.train_split)]
    return sources


def _require_distinct(files: Sequence[str]) -> None:
    paths = [file if file == DEMO else str(Path(file).expanduser().resolve()) for file in files]
    for number, file in enumerate(files):
        if paths[number] in paths[:number]:
            raise DataError("is given twice as a training file: give it the weight 2 in data.train_weights", path=file)


def _file(label: str, path: Path, encoding: str = UTF8) -> Source:
    suffix = path.suffix.lower()

    def rows(columns: Collection[str], problems: Problems) -> Iterator[Row]:
        if suffix == ".parquet":
            return columnar.read_parquet(path, columns, problems)
        file = TextFile(path, encoding)
        return read_json(file, problems, columns) if suffix == ".json" else TEXT_READERS[suffix](file, problems)

    return Source(label, suffix if encoding == UTF8 else f"{suffix}:{encoding}", lambda: [path], rows)


def _saved(label: str, path: Path, split: str) -> Source:
    """A folder that `datasets` saved."""

    def files() -> list[Path]:
        with reading(path):
            return sorted(entry for entry in path.rglob("*") if entry.is_file())

    def rows(columns: Collection[str], problems: Problems) -> Iterator[Row]:
        return columnar.read_dataset(columnar.load_saved(path, split), columns, problems, label)

    return Source(label, f"saved:{split}", files, rows)


def _hub(config: DataConfig, name: str, split: str) -> Source:
    label = "/".join(filter(None, (f"hub:{name}", config.hub_config, split)))

    @cache
    def dataset() -> Dataset:
        return columnar.load_hub(name, config.hub_config, config.hub_revision, split)

    def rows(columns: Collection[str], problems: Problems) -> Iterator[Row]:
        return columnar.read_dataset(dataset(), columns, problems, label)

    def files() -> list[Path]:
        return [Path(file["filename"]) for file in dataset().cache_files]

    # A slice such as train[:10%] shares its files with the whole split.
    return Source(label, f"hub:{split}", files, rows)


def _open(config: DataConfig, file: str, name: str, split: str) -> Source:
    """The source that the user's file name refers to, for the split `name`."""
    if file == DEMO:
        folder = resources.files("lorahydra.data") / "demo"
        return _file(f"{DEMO}/{name}.jsonl", Path(str(folder / f"{name}.jsonl")))
    with reading(file):
        _require_text(file)
        path = Path(file).expanduser()
        _require_existing(path)
        if path.is_dir():
            if any((path / marker).is_file() for marker in columnar.MARKERS):
                return _saved(file, path, split)
            raise DataError(
                "is a folder, and not one that `datasets` saved: name a file in it, for example train.jsonl", path=file
            )
        if not path.is_file():
            raise DataError("is not a regular file", path=file)
        suffix = path.suffix.lower()
        if suffix in COMPRESSED:
            raise DataError(f"is compressed ({suffix}): unpack it first", path=file)
        if suffix not in SUFFIXES:
            raise DataError(
                f"the extension '{path.suffix}' is not supported: use one of {', '.join(SUFFIXES)}, or a folder that "
                "`datasets` saved",
                path=file,
            )
        return _file(file, path, config.encoding)


def _require_text(name: str) -> None:
    """Refuse names that a log, page or database could not show."""
    if "\0" in name:
        raise DataError("is not a file name: it holds a NUL character", path=name)
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise DataError("has a name that is not UTF-8: rename it", path=name) from error


def _require_existing(path: Path) -> None:
    """Raise a `DataError` with similar names in the folder if nothing exists at `path`."""
    try:
        path.stat()
    except FileNotFoundError:
        parent = path.parent
        names = sorted(entry.name for entry in parent.iterdir()) if parent.is_dir() else []
        close = difflib.get_close_matches(path.name, names, n=3)
        if not parent.is_dir():
            hint = f"the folder {parent} does not exist"
        elif close:
            hint = f"did you mean {' or '.join(close)}?"
        else:
            hint = f"nothing of this name exists in {parent.absolute()}"
        raise DataError(f"no such file ({hint})", path=path) from None
