"""Rows of columnar sources: Parquet files, folders that `datasets` saved, and datasets of the hub."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorahydra.data.problems import Fault, Place, Problems, RowError, reading
from lorahydra.data.readers import HEADER_ROW, Row
from lorahydra.data.readers.encodings import refuse_other_files
from lorahydra.errors import DataError, ServiceError, library_errors, one_line, reason
from lorahydra.utils.files import writing

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["MARKERS", "load_hub", "load_saved", "read_dataset", "read_parquet"]

ANSWER_SECONDS = 10.0
"""How long the hub may take to answer before it counts as unreachable."""
BATCH_ROWS = 256
MARKERS = ("dataset_dict.json", "state.json", "dataset_info.json")
"""One of these is in each folder that `datasets` saved."""


def read_parquet(path: Path, columns: Collection[str], problems: Problems) -> Iterator[Row]:
    """Yield the row number and the values of those of `columns` that the file has, in batches.

    The first row is preceded by row 0, which names all columns of the file with null values.

    Raises:
        DataError: The file is not Parquet or is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with reading(path) as place:
        with path.open("rb") as stream:
            refuse_other_files(stream.read(16), path, but=b"PAR1")
        try:
            file = pq.ParquetFile(path, page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"cannot be read as Parquet: {reason(error)}", path=path) from error
        names = file.schema_arrow.names
        wanted = _wanted(names, columns, path)
        yield HEADER_ROW, dict.fromkeys(names)
        if not wanted:
            return
        place.line = 0
        for batch in file.iter_batches(BATCH_ROWS, columns=wanted):
            yield from _batch_rows(batch, place, problems)
        if place.line != file.metadata.num_rows:
            raise DataError(
                f"is damaged: it says that it has {file.metadata.num_rows} rows, but there are {place.line}", path=path
            )


def _wanted(names: Sequence[str], columns: Collection[str], source: Path | str) -> list[str]:
    """The columns to read, each of which must occur once."""
    wanted = [name for name in names if name in columns]
    for name in wanted:
        if wanted.count(name) > 1:
            raise DataError(f"has two columns named '{one_line(name)}'", path=source)
    return wanted


def _batch_rows(batch: Any, place: Place, problems: Problems) -> Iterator[Row]:
    """Rows of a record batch or table, counted on from `place`; one that cannot be read is reported and left out."""
    before = place.line or 0
    try:
        for place.line, row in enumerate(_values(batch), before + 1):
            yield place.line, row
    except RowError as error:
        if batch.num_rows == 1:
            place.line = before + 1
            problems.add(place.line, error.message, fault=error.fault)
            return
        # One value makes the batch unreadable: look at each row.
        for number in range(batch.num_rows):
            yield from _batch_rows(batch.slice(number, 1), place, problems)


def _values(batch: Any) -> list[dict[str, Any]]:
    """The rows as Python objects.

    Raises:
        RowError: One of them cannot be read.
    """

    def unreadable(error: Exception) -> RowError:
        undecodable = isinstance(error, UnicodeDecodeError) or "UTF8" in str(error)
        return RowError(f"cannot be read: {reason(error)}", fault=Fault.UNDECODABLE if undecodable else Fault.OTHER)

    with library_errors(unreadable):
        # Arrow does not check what it maps from disk, and broken offsets would crash.
        batch.validate(full=True)
        rows: list[dict[str, Any]] = batch.to_pylist(maps_as_pydicts="strict")
    return rows


def load_saved(folder: Path, split: str) -> Dataset:
    """Open a folder that `datasets` saved; of several splits take `split`.

    Raises:
        DataError: The folder is damaged or has no such split.
    """
    from datasets import DatasetDict, load_from_disk

    with library_errors(lambda error: DataError(f"cannot be read as a saved dataset: {reason(error)}", path=folder)):
        loaded = load_from_disk(str(folder))
    if not isinstance(loaded, DatasetDict):
        return loaded
    if split not in loaded:
        raise DataError(
            f"the saved dataset has no split '{split}': set data.train_split (or validation_split, "
            f"test_split) to one of {', '.join(loaded)}",
            path=folder,
        )
    return loaded[split]


def load_hub(name: str, config_name: str | None, revision: str | None, split: str) -> Dataset:
    """Fetch a split of a hub dataset, or open it from the hub cache.

    Raises:
        DataError: There is no such dataset, configuration, revision or split, or it needs code to be read.
        ServiceError: The hub cannot be reached and the dataset is not in the cache.
        OutputError: The cache of `datasets` cannot be written.
    """
    from datasets import config as datasets_config
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError, DatasetsError

    # The root of the HTTP library's errors, whichever library this huggingface_hub uses.
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    where = f"hub dataset '{name}'"
    unreachable = _why_unreachable(name, revision)
    # Otherwise the hub would be told of each load.
    datasets_config.HF_UPDATE_DOWNLOAD_COUNTS = False
    with writing(Path(datasets_config.HF_DATASETS_CACHE)), _cache_only() if unreachable else nullcontext():
        try:
            # Always on disk, so that the stored files identify the content.
            return load_dataset(name, config_name, split=split, revision=revision, keep_in_memory=False)
        except DatasetNotFoundError as error:
            raise DataError(f"{where} cannot be used: {reason(error)}") from error
        except (ConnectionError, TimeoutError, HTTPError) as error:
            raise ServiceError(_not_here(where, unreachable or reason(error))) from error
        except (DatasetsError, ValueError, RuntimeError, FileNotFoundError, NotImplementedError) as error:
            if unreachable and "cache" in str(error):  # the cache has another configuration or split of it
                raise ServiceError(_not_here(where, unreachable)) from error
            raise DataError(f"{where} cannot be used: {reason(error)}") from error


def _why_unreachable(name: str, revision: str | None) -> str | None:
    """Why the hub cannot be asked for a dataset; None where it answers anything.

    Asked once, because `datasets` would try each of its files six times, with growing pauses.
    """
    from datasets import config as datasets_config
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError  # type: ignore[attr-defined]

    if datasets_config.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        HfApi().dataset_info(name, revision=revision, timeout=ANSWER_SECONDS)
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        return f"{constants.ENDPOINT} answers with the error {status}" if status >= 500 else None
    except HFValidationError:
        return None
    except (HTTPError, OSError) as error:
        return f"{constants.ENDPOINT} cannot be reached ({reason(error)})"
    return None


@contextmanager
def _cache_only() -> Iterator[None]:
    """Let `datasets` look into its cache and nowhere else."""
    from datasets import config as datasets_config

    before, datasets_config.HF_HUB_OFFLINE = datasets_config.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        datasets_config.HF_HUB_OFFLINE = before


def _not_here(where: str, why: str) -> str:
    return (
        f"{where} is not in the local cache, and {why}: go online, or use a local file with data=local "
        "data.train_file=FILE, or the shipped dataset with data=demo"
    )


def read_dataset(dataset: Dataset, columns: Collection[str], problems: Problems, label: str) -> Iterator[Row]:
    """Yield row numbers and the values of those of `columns` that the dataset has; row 0 names all columns.

    The stored values are taken as they are: images and audio are never decoded.

    Raises:
        DataError: The stored files are damaged.
    """
    with reading(label) as place:
        names = dataset.column_names
        wanted = _wanted(names, columns, label)
        yield HEADER_ROW, dict.fromkeys(names)
        if not wanted:
            return
        for table in dataset.select_columns(wanted).with_format("arrow").iter(BATCH_ROWS):
            yield from _batch_rows(table, place, problems)
