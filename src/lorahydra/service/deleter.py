"""Carries out deletions: removes files, studies and runs, one after another, and begins what the retention asks for.

Each step may be repeated, so a server that was killed simply begins the deletion again:

1. folders of fine-tunes, files of datasets, and caches that no fine-tune needs any more
2. studies in the studies' store
3. runs in MLflow, with their artifacts, and versions of registered models
4. what the deleted rows have left in the service's database
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import select, update

from lorahydra.errors import LorahydraError
from lorahydra.service.database import Database, Dataset, Deletion, Job
from lorahydra.service.deletions import Deletions
from lorahydra.service.folders import CACHES, DATASETS, JOBS, cache_name
from lorahydra.service.results import Stores
from lorahydra.service.supervisor import study_name
from lorahydra.service.watcher import Watcher, fault_of
from lorahydra.utils.files import remove

__all__ = ["Deleter"]

logger = logging.getLogger(__name__)

LOOK_SECONDS = 30.0
"""Time between looks for what is too old, and before a deletion that failed is tried again."""


class Deleter(Watcher):
    """A thread that removes what was deleted from the server's `folder` and its stores.

    `forget` ends what still holds a fine-tune's adapter, which is in the folder that it is called with; `tidy` removes
    what else has been kept for too long.
    """

    def __init__(
        self,
        database: Database,
        folder: Path,
        stores: Stores,
        retention_days: int | None,
        forget: Callable[[Path], None],
        tidy: Callable[[], None],
    ) -> None:
        super().__init__("deleter", LOOK_SECONDS)
        self._database, self._folder, self._stores = database, folder, stores
        self._deletions = Deletions(database, folder, stores, lambda: None, retention_days)
        self._forget, self._tidy = forget, tidy

    def _failed(self, error: Exception) -> None:
        logger.error("Nothing can be deleted: %s", error, exc_info=not isinstance(error, LorahydraError))

    def _look(self) -> None:
        self._tidy()
        self._deletions.expire()
        self._remove_strays()
        with self._database.reading() as session:
            pending = session.scalars(select(Deletion).where(Deletion.ended.is_(None)).order_by(Deletion.id)).all()
        for deletion in pending:
            if self._stopping.is_set():
                return
            fault = None
            try:
                self._carry_out(deletion)
            except Exception as error:
                # Whatever it is, later deletions must not wait for it for ever.
                fault, is_known = fault_of(error), isinstance(error, LorahydraError)
                logger.warning("Deletion %d cannot go on: %s", deletion.id, fault, exc_info=not is_known)
            # Its end is written down last, when nothing else is left to do.
            ended = time.time() if fault is None else None
            with self._database.changing() as session:
                this = update(Deletion).where(Deletion.id == deletion.id)
                session.execute(this.values(fault=fault, ended=ended))

    def _carry_out(self, deletion: Deletion) -> None:
        if deletion.parts:
            jobs = deletion.parts[JOBS]
            for number in jobs:
                folder = self._folder / JOBS / str(number)
                self._forget(folder)
                remove(folder)
                self._forget(folder)  # a question that came before the deletion may have loaded it again
            for file in deletion.parts[DATASETS]:
                remove(self._folder / DATASETS / file)
            for name in deletion.parts[CACHES]:
                self._remove_cache(name, deletion.id)
            # An earlier version of the server wrote down no names of studies.
            studies = deletion.parts.get("studies") or [study_name(number) for number in jobs]
            self._stores.delete(studies, deletion.parts["runs"])
            with self._database.changing() as session:
                session.execute(update(Deletion).where(Deletion.id == deletion.id).values(parts={}, fault=None))
        self._database.erase_deleted()
        logger.info("Deletion %d (%s %d) is complete", deletion.id, deletion.kind, deletion.number)

    def _remove_strays(self) -> None:
        """Remove caches that were made for a dataset while it was deleted, and what a killed server has left of one."""
        with self._database.changing() as session:
            known = {cache_name(None), *map(cache_name, session.scalars(select(Dataset.id)))}
            strays = [cache for cache in (self._folder / CACHES).glob("*") if cache.name not in known]
        for cache in strays:
            remove(cache)

    def _remove_cache(self, name: str, deletion_id: int) -> None:
        """Remove a cache unless a fine-tune needs it, one that was started only now included."""
        cache = self._folder / CACHES / name
        going = cache.with_name(f".{name}.{deletion_id}")
        with self._database.changing() as session:
            needed = {cache_name(number) for number in session.scalars(select(Job.dataset_id).distinct())}
            if name not in needed and cache.exists():
                cache.rename(going)
        remove(going)
