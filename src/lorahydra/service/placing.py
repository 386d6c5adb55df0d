"""Where the trials of fine-tunes run: refuses, when the server starts, what every fine-tune would fail of."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lorahydra.config.checks import lost_keys
from lorahydra.config.compose import compose_hydra, explain
from lorahydra.errors import ConfigError
from lorahydra.service.choices import composed
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
    try:
        name, elsewhere = _placed(overrides)
    except (OmegaConfBaseException, ValueError, TypeError) as error:  # values are resolved when they are read
        raise explain(error) from error
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


def _placed(overrides: Sequence[str]) -> tuple[str, bool]:
    """The name of the overrides' launcher, and whether it may place trials on other machines."""
    hydra = compose_hydra(overrides)
    launcher, sweeper = _group(hydra, "launcher"), _group(hydra, "sweeper")
    _refuse_stores(overrides, sweeper)
    name = dict(hydra.runtime.choices).get("hydra/launcher")
    if not isinstance(name, str):
        raise ConfigError("hydra/launcher has to be one launcher: give --launcher NAME")
    target, jobs = str(launcher.get("_target_", "")), int(sweeper.get("n_jobs") or 1)
    if not sweeper.get("wait", True):
        raise ConfigError("hydra.sweeper.wait=false is for the command line: the server waits for the workers")
    if target.endswith("BasicLauncher") and jobs > 1:
        raise ConfigError(f"hydra.sweeper.n_jobs={jobs} needs a launcher, for example --launcher joblib")
    if target.endswith(".SlurmLauncher") and shutil.which("sbatch") is None:
        raise ConfigError(f"--launcher {name} needs Slurm's commands on this machine, and there is no sbatch")
    return name, places_elsewhere(launcher)


def _group(hydra: DictConfig, name: str) -> DictConfig:
    group = None if OmegaConf.is_missing(hydra, name) else hydra[name]
    if not isinstance(group, DictConfig):
        raise lost_keys("--set", name)
    return group


def _refuse_stores(overrides: Sequence[str], sweeper: DictConfig) -> None:
    """Refuse other stores than the server's, also if a mapping or a file of the config names them."""

    def storage(of: DictConfig) -> Any:
        return OmegaConf.to_container(of, resolve=False).get("storage")  # type: ignore[union-attr]

    changed = {
        "hydra.sweeper.storage": "storage" in sweeper and storage(sweeper) != storage(compose_hydra().sweeper),
        "tracking.uri": composed(overrides).tracking.uri != composed(()).tracking.uri,
    }
    named = {override.partition("=")[0].lstrip("+~") for override in overrides}
    for key, option in OPTIONS.items():
        if key in named or changed[key]:
            raise ConfigError(f"--set {key}=… has no effect on fine-tunes, which share a store: give {option} instead")
