"""Whether the databases of a study can be used by all of its processes: SQLite is for those of one machine."""

from __future__ import annotations

from omegaconf import DictConfig

from lorahydra.errors import ConfigError
from lorahydra.sweep.settings import SweepSettings
from lorahydra.sweep.workers import places_elsewhere
from lorahydra.utils.databases import network_database, shown, sqlite_file

__all__ = ["check_shared"]

STUDIES = "hydra.sweeper.storage=postgresql://USER@HOST/NAME"
RUNS = "the address of an MLflow server (tracking.uri=http://HOST:5000)"
HOW = "docs/cluster.md says how to start one"


def check_shared(settings: SweepSettings, tracking_uri: str, n_workers: int) -> None:
    """Refuse SQLite where it loses data: with workers on other machines, and on a network file system.

    Raises:
        ConfigError: One of both databases cannot be shared.
    """
    stores = (("hydra.sweeper.storage", settings.storage, STUDIES), ("tracking.uri", tracking_uri, RUNS))
    for key, address, better in stores:
        if sqlite_file(address or "") is None:
            continue
        if places_elsewhere(settings.config.hydra.launcher):
            raise ConfigError(
                f"{key}={shown(address or '')} is a SQLite file, and workers of {_name(settings.config.hydra)} may run "
                f"on other machines: give {better}; {HOW}"
            )
        kind = network_database(address or "")
        if kind is not None and (n_workers > 1 or key == "hydra.sweeper.storage"):
            raise ConfigError(
                f"{key}={shown(address or '')} is a SQLite file on a network file system ({kind}), which can damage "
                f"it: give a file on a local disk, or {better}; {HOW}"
            )


def _name(hydra: DictConfig) -> str:
    chosen = hydra.runtime.choices.get("hydra/launcher")
    return f"hydra/launcher={chosen}" if chosen else str(hydra.launcher.get("_target_"))
