"""Ways of searching: spaces, samplers and first trials, as they ship or otherwise."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.surfaces.surface import Surface
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler

from lorahydra.config.compose import compose
from lorahydra.sweep.auto_sampler import AutoSampler
from lorahydra.sweep.samplers import make_sampler
from lorahydra.sweep.search_space import read_space

RATE, RANK, ALPHA, DOUBLINGS = "training.learning_rate", "lora.r", "lora.lora_alpha", "lora.r_doublings"
ORDERED = {RATE: "tag(log, interval(2e-5, 2e-3))", DOUBLINGS: "range(3, 7)"}
"""The shipped space, with the rank as 2 to the power of an integer, so that any sampler knows the order."""
BEFORE = {
    RATE: "tag(log, interval(2e-5, 1e-3))",
    RANK: "choice(8, 16, 32, 64)",
    ALPHA: "choice(16, 32, 64)",
    "lora.lora_dropout": "choice(0.0, 0.05, 0.1)",
    "training.warmup_ratio": "choice(0.0, 0.03, 0.1)",
}
"""The space that shipped until sampler=auto."""
BEFORE_FIRST = {RATE: 2e-4, RANK: 16, ALPHA: 32, "lora.lora_dropout": 0.0, "training.warmup_ratio": 0.03}
FIRST = {RATE: 1e-4, DOUBLINGS: 4}


@dataclass(frozen=True)
class Strategy:
    """A way of searching."""

    sampler: str
    """Name in `hydra/sweeper/sampler`."""
    search: str = "lora"
    """Name in `conf/search`, whose space and first trial are used unless others are given."""
    space: Mapping[str, str] = field(default_factory=dict)
    first: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the sampler other than those that ship."""
    scaling: str = "same"
    """`lora_alpha` by rank, if it is not searched: a name in `SCALINGS`."""


SCALINGS: dict[str, Callable[[float], float]] = {
    "same": lambda rank: 32,
    "root": lambda rank: 8 * math.sqrt(rank),
    "rank": lambda rank: 2 * rank,
}
"""Scales of 32 / r, 8 / sqrt(r) and 2: all are 2 at rank 16. The first one ships."""
STRATEGIES = {
    "default": Strategy("auto"),
    "random": Strategy("random"),
    "multivariate_tpe": Strategy("multivariate_tpe"),
    "tpe ordered": Strategy("multivariate_tpe", space=ORDERED, first=FIRST),
    "gp": Strategy("gp", space=ORDERED, first=FIRST),
    "gp 4": Strategy("gp", space=ORDERED, first=FIRST, settings={"n_startup_trials": 4}),
    "qmc": Strategy("qmc", space=ORDERED, first=FIRST, settings={"scramble": True}),
    "cmaes": Strategy("cmaes", space=ORDERED, first=FIRST),
    "small": Strategy("auto", "small"),
    "before": Strategy("multivariate_tpe", space=BEFORE, first=BEFORE_FIRST),
    "random before": Strategy("random", space=BEFORE, first=BEFORE_FIRST),
    "auto, alpha root": Strategy("auto", scaling="root"),
    "auto, alpha 2r": Strategy("auto", scaling="rank"),
    "auto, 8 start": Strategy("auto", settings={"n_startup_trials": 8}),
}


def searched(strategy: Strategy) -> tuple[dict[str, BaseDistribution], Mapping[str, Any]]:
    """The space of a strategy, and its first trial."""
    search = compose([f"search={strategy.search}"]).search
    space = read_space([], strategy.space or search.space, {}, add_shipped=True).distributions
    return space, strategy.first or search.first_trial


def sampler_of(strategy: Strategy, space: Mapping[str, BaseDistribution], seed: int) -> BaseSampler:
    """The sampler of a strategy, as a study makes it."""
    settings = of_group("sampler", strategy.sampler, strategy.settings)
    sampler = make_sampler(settings, OmegaConf.create({"seed": seed}))
    if isinstance(sampler, AutoSampler):
        sampler.fit(space)
    assert isinstance(sampler, BaseSampler), "every one but the grid sampler"
    return sampler


@functools.cache
def _config_store() -> ConfigStore:
    """Hydra's configurations of samplers and pruners, which importing these modules registers."""
    import hydra_plugins.hydra_optuna_sweeper.config

    import hydra_plugins.lorahydra_sweeper.config  # noqa: F401

    return ConfigStore.instance()


def of_group(group: str, name: str, settings: Mapping[str, Any] | None = None) -> Any:
    """The shipped settings of a sampler or pruner, with some of them replaced."""
    node = OmegaConf.create(OmegaConf.to_container(_config_store().load(f"hydra/sweeper/{group}/{name}.yaml").node))
    return OmegaConf.merge(node, dict(settings or {}))


def setting(params: Mapping[str, Any], surface: Surface, scaling: str = "same") -> tuple[float, float]:
    """Rate, as at the grid's scale, and rank of a trial; dropout and warm-up are taken to change nothing.

    Adam's steps do not depend on the size of gradients, so another `lora_alpha` is much the same as another rate: it is
    replayed as the rate times the quotient of the scales.

    Args:
        params: The parameters of the trial.
        surface: The grid.
        scaling: `lora_alpha` by rank, if the parameters do not have it.
    """
    rank = 2.0 ** params[DOUBLINGS] if DOUBLINGS in params else float(params.get(RANK, 16))
    alpha = params.get(ALPHA, SCALINGS[scaling](rank))
    return params[RATE] * alpha / surface.alpha(rank), rank
