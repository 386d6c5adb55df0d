"""Samplers and pruners, made from their configurations and fitted to a search space."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.pruners import BasePruner, NopPruner, WilcoxonPruner
from optuna.samplers import BaseSampler, BruteForceSampler, CmaEsSampler, GridSampler, QMCSampler, TPESampler

from lorahydra.errors import ConfigError, causes
from lorahydra.sweep.auto_sampler import AutoSampler
from lorahydra.sweep.compat import quietly
from lorahydra.sweep.search_space import grid_size, grid_values, size
from lorahydra.sweep.settings import SweepSettings, UnfittedSampler

__all__ = ["fit_sampler", "make_pruner", "make_sampler", "warn_of_random_draws"]

logger = logging.getLogger("lorahydra.sweep")

AUTO = f"{AutoSampler.__module__}.AutoSampler"
LARGEST_GRID = 100_000
"""Settings; the grid sampler holds all of them in memory."""


def make_pruner(settings: Any) -> BasePruner:
    """The pruner.

    Raises:
        ConfigError: It cannot be made.
    """
    pruner: BasePruner = _made("pruner", settings, ("optuna.pruners.*", "lorahydra.sweep.halving.*"))
    if isinstance(pruner, WilcoxonPruner):
        # Accepted, because studies of earlier versions were begun with it.
        logger.warning(
            "hydra/sweeper/pruner=wilcoxon ends no trial: its test needs a value for each example, not the losses of a "
            "training over time; choose auto, halving, median, percentile or hyperband"
        )
        return NopPruner()
    return pruner


def make_sampler(settings: Any, config: DictConfig) -> UnfittedSampler:
    """The sampler. If it has no seed, it gets the experiment's, so that a study can be repeated.

    Raises:
        ConfigError: It cannot be made.
    """
    settings = OmegaConf.create(OmegaConf.to_container(settings) if isinstance(settings, DictConfig) else settings)
    seed = OmegaConf.select(config, "seed")
    if "seed" in settings and settings.seed is None and isinstance(seed, int):
        settings.seed = seed
    if settings.get("warn_independent_sampling"):
        # Optuna warns for each parameter of each trial; `warn_of_random_draws` does it once.
        settings.warn_independent_sampling = False
    sampler: UnfittedSampler
    sampler = _made("sampler", settings, ("hydra_plugins.hydra_optuna_sweeper.*", "optuna.samplers.*", AUTO))
    return sampler


def _made(kind: str, settings: Any, allowed: tuple[str, ...]) -> Any:
    try:
        with quietly():
            return instantiate(settings, _execution_whitelist_=allowed)
    except (HydraException, ImportError, ValueError, TypeError) as error:
        reasons = [cause for cause in causes(error) if not isinstance(cause, HydraException)]
        missing = [cause.name for cause in reasons if isinstance(cause, ImportError) and cause.name]
        reason = f"it needs a package: pip install {missing[-1]}" if missing else str([*reasons, error][0])
        name = str(settings.get("_target_", "")).rpartition(".")[2]
        raise ConfigError(f"hydra/sweeper/{kind}: {name} cannot be used: {' '.join(reason.split())}") from error


def fit_sampler(
    settings: SweepSettings, space: Mapping[str, BaseDistribution], *, tries_all: bool, seed: int | None
) -> SweepSettings:
    """The settings with a sampler that suits the search space: a complete grid, or every setting of a small space.

    Args:
        settings: What the sweep was started with.
        space: The distributions by parameter.
        tries_all: Whether each setting of a small finite space is tried once.
        seed: Decides the order of these settings.

    Raises:
        ConfigError: The grid is too large.
    """
    sampler, count = settings.sampler, size(space)
    if isinstance(sampler, functools.partial):
        sampler, count = _grid(sampler, space, settings.grid_steps)
        if count > settings.n_trials:
            logger.info("The grid has %d settings: %d of them are tried", count, settings.n_trials)
    else:
        if isinstance(sampler, AutoSampler):
            sampler = _auto(sampler, space, complete=not settings.extends_space)
        if not tries_all or settings.extends_space or not space:
            return replace(settings, sampler=sampler)
    if count > settings.n_trials:
        return replace(settings, sampler=sampler)
    if not isinstance(sampler, GridSampler):
        # Unlike the grid sampler it takes into account what other samplers have tried in this study.
        with quietly():
            sampler = BruteForceSampler(seed=seed)
    logger.info("The search space has %d settings: each is tried once", count)
    return replace(settings, sampler=sampler, n_trials=int(count))


def _auto(sampler: AutoSampler, space: Mapping[str, BaseDistribution], *, complete: bool) -> BaseSampler:
    """The sampler for this space; TPE if a function of the user adds parameters, which are not known in advance."""
    if complete:
        sampler.fit(space)
        return sampler
    with quietly():
        return TPESampler(
            seed=sampler.seed, multivariate=True, constant_liar=True, n_startup_trials=sampler.n_startup_trials
        )


def _grid(
    sampler: functools.partial[GridSampler], space: Mapping[str, BaseDistribution], steps: int
) -> tuple[GridSampler, int]:
    """The grid sampler of a search space, and the number of settings in its grid."""
    count = math.prod(grid_size(distribution, steps) for distribution in space.values())
    if count > LARGEST_GRID:
        raise ConfigError(
            f"hydra/sweeper/sampler=grid: the grid has {count} settings, more than the {LARGEST_GRID} allowed: search "
            "fewer values, or use another sampler"
        )
    return sampler({name: grid_values(distribution, steps) for name, distribution in space.items()}), count


def warn_of_random_draws(sampler: BaseSampler | UnfittedSampler, space: Mapping[str, BaseDistribution]) -> None:
    """Warn of parameters that the sampler does not search but draws at random."""
    if not isinstance(sampler, CmaEsSampler | QMCSampler):
        return
    drawn = [name for name, distribution in space.items() if isinstance(distribution, CategoricalDistribution)]
    if isinstance(sampler, CmaEsSampler) and len(space) - len(drawn) == 1:
        drawn = list(space)  # Optuna's CMA-ES needs two dimensions
    if drawn:
        logger.warning(
            "%s searches ranges of numbers%s; drawn at random: %s",
            type(sampler).__name__,
            ", two or more of them" if isinstance(sampler, CmaEsSampler) else "",
            ", ".join(drawn),
        )
