"""The settings with which a sweep was started."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from hydra.core.config_loader import ConfigLoader
from hydra.types import HydraContext
from omegaconf import DictConfig
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, GridSampler

from lorahydra.config.checks import at_least, within

__all__ = ["MOST_DEATHS", "SweepSettings", "UnfittedSampler"]

UnfittedSampler = BaseSampler | functools.partial[GridSampler]
"""A grid sampler cannot be made before the search space is read."""
MOST_DEATHS = 2
"""Parameters whose process died this often make a failed trial: they may need more memory than there is."""


@dataclass(frozen=True)
class SweepSettings:
    """The keys of `hydra.sweeper`, checked, and the configuration that Hydra composed for the sweep.

    Raises:
        ConfigError: A number is out of its range.
    """

    config: DictConfig
    """The whole configuration, `hydra` included."""
    hydra_context: HydraContext
    """What Hydra gives to a sweeper, which a launcher needs as well."""
    sampler: UnfittedSampler
    pruner: BasePruner
    storage: str | None
    """Address of the study's database; None keeps the study in memory."""
    study_name: str | None
    directions: list[str] | None
    """`minimize` or `maximize` per objective; None if the objective decides."""
    n_trials: int
    """Finished trials at which the study ends."""
    n_jobs: int
    """Trials at once."""
    max_failure_rate: float
    """Share of `n_trials` that may fail, 0 to 1."""
    extends_space: bool
    """Whether a function of the user adds parameters to each trial (`custom_search_space`)."""
    max_deaths: int = MOST_DEATHS
    """How often a process may die with the same parameters before they count as a failed trial."""
    grid_steps: int = 5
    """Values of a continuous range that the grid sampler tries."""
    wait: bool = True
    """Whether this process waits for workers that run on a cluster."""

    @property
    def config_loader(self) -> ConfigLoader:
        """Composes the configuration of each trial."""
        return self.hydra_context.config_loader

    def __post_init__(self) -> None:
        for name, low in (("n_trials", 1), ("n_jobs", 1), ("max_deaths", 1), ("grid_steps", 2)):
            at_least(f"hydra.sweeper.{name}", getattr(self, name), low)
        within("hydra.sweeper.max_failure_rate", self.max_failure_rate, 0, 1)
