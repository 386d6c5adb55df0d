"""Where the trials of fine-tunes run: refuses, when the server starts, what every fine-tune would fail of."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from lorahydra.config.compose import compose_hydra
from lorahydra.errors import ConfigError
from lorahydra.service.results import Stores
from lorahydra.sweep.workers import places_elsewhere
from lorahydra.utils.databases import network_database, shown, sqlite_file

__all__ = ["check_placing"]

OPTIONS = {"hydra.sweeper.storage": "--studies", "tracking.uri": "--tracking-uri"}
"""Keys that the server sets for every fine-tune, and the options that do so."""
DATABASE, SERVER = "postgresql://USER@HOST/NAME", "http://HOST:5000"
HOW = "docs/cluster.md says how to start one"


def check_placing(overrides: Sequence[str], storage: str, stores: Stores) -> bool:
    """Check the launcher of the server's overrides, and that all workers can use its databases.

    Args:
        overrides: Of every fine-tune.
        storage: Address of the server's own database.
        stores: The studies' and MLflow's.

    Returns:
        Whether trials may run on other machines.

    Raises:
        ConfigError: The launcher does not exist, its keys are not allowed, or a database cannot be shared.
    """
    for override in overrides:
        key = override.partition("=")[0].lstrip("+~")
        if key in OPTIONS:
            raise ConfigError(
                f"--set {key}=… has no effect on fine-tunes, which share a store: give {OPTIONS[key]} instead"
            )
    hydra = compose_hydra(overrides)
    launcher, sweeper, name = hydra.launcher, hydra.sweeper, str(hydra.runtime.choices["hydra/launcher"])
    target = str(launcher.get("_target_", ""))
    if not sweeper.get("wait", True):
        raise ConfigError("hydra.sweeper.wait=false is for the command line: the server waits for the workers")
    if target.endswith("BasicLauncher") and int(sweeper.get("n_jobs") or 1) > 1:
        raise ConfigError(f"hydra.sweeper.n_jobs={sweeper.n_jobs} needs a launcher, for example --launcher joblib")
    if target.endswith(".SlurmLauncher") and shutil.which("sbatch") is None:
        raise ConfigError(f"--launcher {name} needs Slurm's commands on this machine, and there is no sbatch")
    elsewhere = places_elsewhere(launcher)
    needed = (("--studies", stores.studies, DATABASE), ("--tracking-uri", stores.tracking.uri, SERVER))
    if elsewhere and (missing := [f"{option} {form}" for option, store, form in needed if sqlite_file(store)]):
        raise ConfigError(
            f"workers of --launcher {name} may run on other machines, which cannot use SQLite: give "
            f"{' and '.join(missing)}; {HOW}"
        )
    for option, store, form in (("--storage", storage, DATABASE), *needed):
        kind = network_database(store)
        if kind is not None:
            raise ConfigError(
                f"{shown(store)} is a SQLite file on a network file system ({kind}), which can damage it: give a "
                f"--folder on a local disk, or {option} {form}; {HOW}"
            )
    return elsewhere
