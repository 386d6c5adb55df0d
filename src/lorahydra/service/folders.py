"""Where things are in the server's folder."""

from __future__ import annotations

from pathlib import Path

__all__ = ["CACHES", "DATASETS", "JOBS", "MODELS", "TEMPORARY", "cache_folder", "cache_name"]

JOBS, DATASETS, MODELS = "jobs", "datasets", "models"
CACHES = "caches"
"""Rows, tokens and verdicts of each dataset's fine-tunes, in a folder for each dataset."""
TEMPORARY = "tmp"
"""Temporary files: the server's own, and in a job's folder those of its study."""
DEMO = "demo"


def cache_name(dataset_id: int | None) -> str:
    """Name of the cache of a dataset; None is the demo dataset."""
    return DEMO if dataset_id is None else str(dataset_id)


def cache_folder(folder: Path, dataset_id: int | None) -> Path:
    """The cache of a dataset in the server's folder."""
    return folder / CACHES / cache_name(dataset_id)
