"""Samplers and pruners, from their configs and for a search space."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Mapping
from typing import Any

from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, CmaEsSampler, GridSampler, QMCSampler

from lorahydra.errors import ConfigError, causes
from lorahydra.sweep.optuna_warnings import quietly
from lorahydra.sweep.search_space import grid_values

__all__ = ["UnfittedSampler", "fit_grid", "make_pruner", "make_sampler", "say_what_is_drawn"]

logger = logging.getLogger("lorahydra.sweep")

UnfittedSampler = BaseSampler | functools.partial[GridSampler]
"""A grid sampler is made when the search space is known."""
LARGEST_GRID = 100_000
"""Settings; the grid sampler holds all of them in memory."""


def make_pruner(settings: Any) -> BasePruner:
    """The pruner.

    Raises:
        ConfigError: It cannot be made.
    """
    pruner: BasePruner = _made("pruner", settings, ("optuna.pruners.*",))
    return pruner


def make_sampler(settings: Any, config: DictConfig) -> UnfittedSampler:
    """The sampler; without a seed of its own it takes the experiment's, so that a study can be repeated.

    Raises:
        ConfigError: It cannot be made.
    """
    settings = OmegaConf.create(OmegaConf.to_container(settings) if isinstance(settings, DictConfig) else settings)
    seed = OmegaConf.select(config, "seed")
    if "seed" in settings and settings.seed is None and isinstance(seed, int):
        settings.seed = seed
    if settings.get("warn_independent_sampling"):
        settings.warn_independent_sampling = False  # for each parameter of each trial; `say_what_is_drawn` does it once
    sampler: UnfittedSampler
    sampler = _made("sampler", settings, ("hydra_plugins.hydra_optuna_sweeper.*", "optuna.samplers.*"))
    return sampler


def _made(kind: str, settings: Any, allowed: tuple[str, ...]) -> Any:
    try:
        with quietly():
            return instantiate(settings, _execution_whitelist_=allowed)
    except (HydraException, ImportError, ValueError, TypeError) as error:
        found = [cause for cause in causes(error) if not isinstance(cause, HydraException)]
        missing = [cause.name for cause in found if isinstance(cause, ImportError) and cause.name]
        reason = f"it needs a package: pip install {missing[-1]}" if missing else str([*found, error][0])
        name = str(settings.get("_target_", "")).rpartition(".")[2]
        raise ConfigError(f"hydra/sweeper/{kind}: {name} cannot be used: {' '.join(reason.split())}") from error


def fit_grid(
    sampler: functools.partial[GridSampler], space: Mapping[str, BaseDistribution], steps: int
) -> tuple[GridSampler, int]:
    """The grid sampler of a search space, and the number of settings in its grid.

    Args:
        sampler: Without its space.
        space: The distributions.
        steps: Values of a continuous range.

    Raises:
        ConfigError: The grid is too large.
    """
    grid = {name: grid_values(found, steps) for name, found in space.items()}
    settings = math.prod(len(values) for values in grid.values())
    if settings > LARGEST_GRID:
        raise ConfigError(
            f"hydra/sweeper/sampler=grid: the grid has {settings} settings, and {LARGEST_GRID} are the most: search "
            "fewer values, or use another sampler"
        )
    return sampler(grid), settings


def say_what_is_drawn(sampler: UnfittedSampler, space: Mapping[str, BaseDistribution]) -> None:
    """Warn of parameters that the sampler does not search but draws at random."""
    if not isinstance(sampler, CmaEsSampler | QMCSampler):
        return
    drawn = [name for name, found in space.items() if isinstance(found, CategoricalDistribution)]
    if isinstance(sampler, CmaEsSampler) and len(space) - len(drawn) == 1:
        drawn = list(space)  # Optuna's CMA-ES needs two dimensions
    if drawn:
        logger.warning(
            "%s searches ranges of numbers%s; drawn at random: %s",
            type(sampler).__name__,
            ", two or more of them" if isinstance(sampler, CmaEsSampler) else "",
            ", ".join(drawn),
        )
