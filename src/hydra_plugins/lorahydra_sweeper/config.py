"""Settings of the sweeper and of its pruners, for Hydra's config store.

Every key of `hydra/sweeper=optuna` exists here with the same meaning; `hydra/sweeper/sampler` is its group, extended by
`auto` and `multivariate_tpe`.
Experiments of lorahydra take the values from `conf/hydra/sweeper/lorahydra.yaml`, other programs from here. Hydra
imports this module whenever it starts, so nothing slow is imported here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra_plugins.hydra_optuna_sweeper.config import OptunaSweeperConf, SamplerConfig, TPESamplerConfig
from omegaconf import MISSING

from lorahydra.config.environment import register_resolver
from lorahydra.names import STUDY_STORE

__all__ = ["LorahydraSweeperConf"]


@dataclass
class MultivariateTPEConfig(TPESamplerConfig):
    """TPE that considers how parameters work together, and avoids parameters that other workers are trying."""

    multivariate: bool = True
    constant_liar: bool = True
    n_startup_trials: int = 6
    warn_independent_sampling: bool | None = None


@dataclass
class AutoSamplerConfig(SamplerConfig):
    """The sampler that suits a study."""

    _target_: str = "lorahydra.sweep.auto_sampler.AutoSampler"
    seed: int | None = None
    # Trials that are spread over the space before results decide.
    n_startup_trials: int = 4


@dataclass
class PrunerConfig:
    """A class of `optuna.pruners`."""

    _target_: str = MISSING


@dataclass
class NopPrunerConfig(PrunerConfig):
    """Every trial runs to its end."""

    _target_: str = "optuna.pruners.NopPruner"


@dataclass
class MedianPrunerConfig(PrunerConfig):
    """Ends a trial whose best loss so far is worse than the median of finished trials at the same point."""

    _target_: str = "optuna.pruners.MedianPruner"
    n_startup_trials: int = 4
    n_warmup_steps: int = 0
    interval_steps: int = 1
    n_min_trials: int = 3


@dataclass
class PercentilePrunerConfig(MedianPrunerConfig):
    """The same with another share of trials that go on."""

    _target_: str = "optuna.pruners.PercentilePruner"
    percentile: float = 75.0


@dataclass
class HyperbandPrunerConfig(PrunerConfig):
    """Successive halving in several brackets; resources are measurements of the validation loss."""

    _target_: str = "optuna.pruners.HyperbandPruner"
    min_resource: int = 1
    max_resource: Any = "auto"
    reduction_factor: int = 3
    bootstrap_count: int = 0


@dataclass
class HalvingPrunerConfig(PrunerConfig):
    """Ends about half of the trials of a pack, those with the highest losses, at each of these points."""

    _target_: str = "lorahydra.sweep.halving.HalvingPruner"
    # Shares of a trial's own schedule.
    fractions: list[float] = field(default_factory=lambda: [0.25, 0.5])
    # Trials with the next higher learning rates than the leader's, which stay.
    neighbours: int = 2


@dataclass
class AutoPrunerConfig(HalvingPrunerConfig):
    """The same for trials that are trained in packs, and the median for those that are trained alone."""

    _target_: str = "lorahydra.sweep.halving.AutoPruner"


@dataclass
class WilcoxonPrunerConfig(PrunerConfig):
    """Accepted for studies of earlier versions; it ends no trial."""

    _target_: str = "optuna.pruners.WilcoxonPruner"
    p_threshold: float = 0.1
    n_startup_steps: int = 2


@dataclass
class BaseLorahydraSweeperConf(OptunaSweeperConf):
    """The keys of `hydra/sweeper=lorahydra`, without a choice of sampler and pruner."""

    _target_: str = "hydra_plugins.lorahydra_sweeper.sweeper.LorahydraSweeper"
    defaults: list[Any] = field(default_factory=list)
    # An experiment's objectives say their direction; for any other function the default is to minimize.
    direction: Any = None
    # null keeps a study in memory, where it ends with its process.
    storage: Any | None = STUDY_STORE
    # Finished trials in the study, over all processes and resumptions.
    n_trials: int = "${lora_env:LORA_N_TRIALS,int,20}"  # type: ignore[assignment]
    # Workers, each of which runs trials one after another, or packs of trials; placed by hydra/launcher.
    n_jobs: int = 1
    # Whether the command waits for workers on a cluster.
    wait: bool = True
    # Share of n_trials that may fail before the study is given up.
    max_failure_rate: float = 0.5
    # How often a trial's process may be killed before the trial counts as failed; more where machines are taken away.
    max_deaths: int = 2
    # Number of values of a continuous range that sampler=grid tries, including both ends.
    grid_steps: int = 5
    pruner: PrunerConfig = MISSING


@dataclass
class LorahydraSweeperConf(BaseLorahydraSweeperConf):
    """`hydra/sweeper=lorahydra` in any other program than lorahydra."""

    defaults: list[Any] = field(default_factory=lambda: [{"sampler": "auto"}, {"pruner": "auto"}])


def _store() -> None:
    register_resolver()
    store = ConfigStore.instance()
    provider = "lorahydra_sweeper"
    store.store(group="hydra/sweeper", name="lorahydra", node=LorahydraSweeperConf, provider=provider)
    store.store(group="hydra/sweeper", name="base_lorahydra", node=BaseLorahydraSweeperConf, provider=provider)
    for name, sampler in {"auto": AutoSamplerConfig, "multivariate_tpe": MultivariateTPEConfig}.items():
        store.store(group="hydra/sweeper/sampler", name=name, node=sampler, provider=provider)
    pruners = {
        "auto": AutoPrunerConfig,
        "halving": HalvingPrunerConfig,
        "none": NopPrunerConfig,
        "median": MedianPrunerConfig,
        "percentile": PercentilePrunerConfig,
        "hyperband": HyperbandPrunerConfig,
        "wilcoxon": WilcoxonPrunerConfig,
    }
    for name, node in pruners.items():
        store.store(group="hydra/sweeper/pruner", name=name, node=node, provider=provider)


_store()
