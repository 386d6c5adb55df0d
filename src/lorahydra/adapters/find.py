"""Finds an adapter by any of its names.

```python
with find_adapter("demo") as adapter:          # a study: its champion
    print(adapter.folder, adapter.run)
```

| name | adapter |
|---|---|
| a folder in PEFT's format | the folder itself; no store is read |
| the id of an MLflow run | the adapter of that trial, or of that study's best trial |
| `models:/NAME@ALIAS`, `models:/NAME/VERSION` | the adapter of that version of a registered model |
| the name of a registered model or of a study | the adapter of the version with the alias `champion` |
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lorahydra.config.schema import TrackingConfig
from lorahydra.errors import LorahydraError, ModelError, NotRecordedError, TrackingError
from lorahydra.names import ADAPTER_CONFIG_FILE, ADAPTER_DIR, CHAMPION, METADATA_FILE, PARENT_TAG, Kind, Tag
from lorahydra.tracking import RecordedRun, RegisteredVersion, fetch_adapter, find_version, read_run, registered_name
from lorahydra.tracking.address import resolve
from lorahydra.utils.databases import shown, sqlite_file

__all__ = ["FoundAdapter", "find_adapter", "store_address"]

RUN_ID = re.compile(r"[0-9a-f]{32}")
MODEL_URI = re.compile(r"models:/+(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>[0-9]+))")


@dataclass(frozen=True)
class FoundAdapter:
    """An adapter on this machine, and its record in MLflow."""

    name: str
    """Its name in a sentence."""
    folder: Path
    """A folder in PEFT's format; a temporary one if the adapter comes from a store."""
    run: RecordedRun | None = None
    """Run of the trial that trained it."""
    study: RecordedRun | None = None
    """Run of the study that it won."""


def store_address(uri: str | None = None) -> str:
    """The MLflow store that a command reads: the one that is given, `MLFLOW_TRACKING_URI`, or `./mlflow.db`."""
    return resolve(uri or os.environ.get("MLFLOW_TRACKING_URI") or TrackingConfig.uri)


@contextmanager
def find_adapter(name: str, *, uri: str | None = None, record: bool = False) -> Iterator[FoundAdapter]:
    """Find an adapter; one that comes from a store is copied to a temporary folder until the block ends.

    Args:
        name: What the user calls it, see the table above. A folder takes precedence.
        uri: The store, as `store_address` takes it.
        record: Look for the run of a folder's adapter too; it is None if the store does not have it.

    Raises:
        ModelError: There is no such adapter; the message says what was looked for and where.
        TrackingError: The store cannot be read.
    """
    folder = _folder(name)
    if _is_adapter(folder):
        run, study = _record_of(folder, uri) if record else (None, None)
        yield FoundAdapter(str(folder), folder, run, study)
        return
    if _is_path(name):
        raise ModelError(f"{name} is not an adapter: {_what_it_is(folder)}")
    store = _existing_store(uri, name, folder)
    called, run, study = _by_run(store, name) if RUN_ID.fullmatch(name) else _by_model(store, name, folder)
    with tempfile.TemporaryDirectory(prefix="lorahydra-") as download:
        copy = Path(download) / registered_name(called)
        if not fetch_adapter(store, run.run_id, copy):
            raise ModelError(
                f"run {run.run_id} ({run.name}) has no adapter in {shown(store.uri)}: it failed, was run with "
                "tracking.log_adapter=false, or was not sent yet (`lorahydra sync` on its output folder)"
            )
        yield FoundAdapter(called, copy, run, study)


def _folder(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError:  # ~NAME, and no user has this name
        return Path(name)


def _is_adapter(folder: Path) -> bool:
    return _is_folder(folder) and (folder / ADAPTER_CONFIG_FILE).is_file()


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # no file can have this name
        return False


def _is_path(name: str) -> bool:
    return not name.startswith("models:/") and (os.sep in name or name.startswith((".", "~")))


def _what_it_is(folder: Path) -> str:
    if not _is_folder(folder):
        return "there is no such folder"
    within = [entry for entry in ("best", ADAPTER_DIR) if _is_adapter(folder / entry)]
    hint = f"; {folder / within[0]} is one" if within else ""
    return f"it has no {ADAPTER_CONFIG_FILE}{hint}"


def _existing_store(uri: str | None, name: str, folder: Path) -> TrackingConfig:
    address = store_address(uri)
    file = sqlite_file(address)
    if file is not None and not file.is_file():
        raise ModelError(
            f"there is no adapter {name}: {_no_folder(folder)}, and there is no MLflow store at {shown(address)}; name "
            "the store with --uri"
        )
    return TrackingConfig(uri=address)


def _no_folder(folder: Path) -> str:
    what = f"has no {ADAPTER_CONFIG_FILE}" if _is_folder(folder) else "does not exist"
    return f"the folder {folder} {what}"


def _by_run(store: TrackingConfig, run_id: str) -> tuple[str, RecordedRun, RecordedRun | None]:
    try:
        run = read_run(store, run_id)
    except NotRecordedError as error:
        raise ModelError(str(error)) from error
    if run.tags.get(Tag.KIND) != Kind.STUDY:
        return f"run {run.name}", run, _study_of(store, run)
    best = run.tags.get(Tag.BEST_RUN)
    if not best:
        raise ModelError(f"run {run_id} is the study {run.name}, which has no winner yet: give the run of a trial")
    return f"study {run.name}", read_run(store, best), run


def _by_model(store: TrackingConfig, name: str, folder: Path) -> tuple[str, RecordedRun, RecordedRun | None]:
    version = _version(store, name, folder)
    called = f"{version.name} version {version.version}"
    if version.run_id is None:
        raise ModelError(f"{called} in {shown(store.uri)} was registered without a run, so its adapter cannot be found")
    run = read_run(store, version.run_id)
    return called, run, _study_of(store, run)


def _version(store: TrackingConfig, name: str, folder: Path) -> RegisteredVersion:
    if name.startswith("models:"):
        return _named_version(store, name)
    names = dict.fromkeys((name, registered_name(f"lorahydra-{name}")))
    versions = [version for model in names if (version := find_version(store, model, alias=CHAMPION)) is not None]
    if not versions:
        raise ModelError(
            f"there is no adapter {name}: {_no_folder(folder)}, and {shown(store.uri)} has no registered model "
            f"{' or '.join(names)} with the alias {CHAMPION}; give a folder, the id of a run, or models:/NAME@ALIAS"
        )
    if len({version.run_id for version in versions}) > 1:
        choices = " or ".join(f"models:/{version.name}@{CHAMPION}" for version in versions)
        raise ModelError(f"{name} is both a registered model and a study in {shown(store.uri)}: give {choices}")
    return versions[0]


def _named_version(store: TrackingConfig, name: str) -> RegisteredVersion:
    parts = MODEL_URI.fullmatch(name)
    if parts is None:
        raise ModelError(
            f"{name} is not the name of a registered model: write models:/NAME@ALIAS or models:/NAME/VERSION"
        )
    version = find_version(store, parts["name"], alias=parts["alias"] or CHAMPION, version=parts["version"])
    if version is None:
        raise ModelError(f"{name} is not in the registry of {shown(store.uri)}: check name and alias, or give --uri")
    return version


def _study_of(store: TrackingConfig, run: RecordedRun) -> RecordedRun | None:
    """The study that a trial's run has won; it has the scores on the test split."""
    try:
        study = read_run(store, run.tags[PARENT_TAG])
    except (KeyError, TrackingError):  # the trial does not belong to a study, or the study was deleted
        return None
    return study if study.tags.get(Tag.BEST_RUN) == run.run_id else None


def _record_of(folder: Path, uri: str | None) -> tuple[RecordedRun | None, RecordedRun | None]:
    """The run that a folder's adapter names, if the store has it; the adapter can be used without it."""
    try:
        run_id = json.loads((folder / METADATA_FILE).read_text("utf-8"))["run_id"]
        store = TrackingConfig(uri=store_address(uri))
        if not isinstance(run_id, str) or not RUN_ID.fullmatch(run_id):
            return None, None
        run = read_run(store, run_id)
        return run, _study_of(store, run)
    except (OSError, ValueError, KeyError, TypeError, LorahydraError):
        return None, None
