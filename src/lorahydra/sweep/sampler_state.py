"""Samplers in interrupted studies: what they draw depends only on the trials that count.

So an interrupted study draws the same as an uninterrupted one, and both draw the same as Hydra's Optuna sweeper. That
is why the random state is kept, and not a seed per trial, which would give other parameters.

Most samplers need only their random state. Others keep more: in memory (Gaussian processes: where their last fit
ended), or in the study (quasi Monte Carlo: the place in the sequence). Grid and CMA-ES depend on the number of a trial,
and interrupted trials use up numbers.
"""

from __future__ import annotations

import base64
import copy
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, GridSampler
from optuna.trial import FrozenTrial, TrialState

from lorahydra.sweep.compat import LazyRandomState, set_system_attr, system_attrs
from lorahydra.sweep.trial_record import counted, trial_facts

__all__ = [
    "counting",
    "keep_sampler",
    "last_drawn",
    "random_state",
    "restore_random_state",
    "restore_sampler",
    "sampler_name",
]

SAMPLER = "lorahydra.sampler"
SEQUENCE = "qmc:"
"""Prefix of the study's system attributes that hold a place in a sequence."""
FITS = ("_gprs_cache_list", "_constraints_gprs_cache_list")
NUMBERS = {"lengthscales": "inverse_squared_lengthscales", "scale": "kernel_scale", "noise": "noise_var"}
"""The numbers of a Gaussian process's fit: their names in the study, and in Optuna."""


def counting(sampler: BaseSampler) -> BaseSampler:
    """The sampler; if it depends on the number of a trial, interrupted trials are not counted."""
    return _Counting(sampler) if isinstance(sampler, GridSampler | CmaEsSampler) else sampler


def sampler_name(sampler: BaseSampler) -> str:
    """The name of Optuna's class."""
    return type(sampler._sampler if isinstance(sampler, _Counting) else sampler).__name__


def keep_sampler(study: optuna.Study, last: int) -> None:
    """Keep in the study everything besides the trials that decides the draws after trial `last`."""
    places = {name: place for name, place in system_attrs(study).items() if name.startswith(SEQUENCE)}
    fits = {name: _plain(kept) for name in FITS if (kept := getattr(study.sampler, name, None)) is not None}
    state = {"random": random_state(study.sampler), "places": places, "fits": fits}
    study.set_user_attr(SAMPLER, {"trial": last, "state": state})


def restore_sampler(study: optuna.Study) -> None:
    """Restore the study's sampler to the state that was last kept; in a new study, keep its state first."""
    kept = study.user_attrs.get(SAMPLER)
    if kept is None:
        keep_sampler(study, -1)
        return
    state = kept["state"]
    restore_random_state(study.sampler, state["random"])
    for name, place in system_attrs(study).items():
        if name.startswith(SEQUENCE) and place != (before := state["places"].get(name, -1)):
            set_system_attr(study, name, before)
    for name in FITS:
        if hasattr(study.sampler, name):
            fits = state["fits"].get(name)
            setattr(study.sampler, name, None if fits is None else _fits(fits))


def last_drawn(study: optuna.Study) -> int:
    """Number of the last trial whose parameters are drawn, and cannot be drawn again; -1 if there is none."""
    return int(study.user_attrs.get(SAMPLER, {}).get("trial", -1))


class _Counting(BaseSampler):
    """Hands trials to a sampler under the number that they would have had without interruptions."""

    def __init__(self, sampler: BaseSampler) -> None:
        self._sampler = sampler

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._sampler.before_trial(study, _counted(study, trial))

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._sampler.sample_relative(study, _counted(study, trial), search_space)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def reseed_rng(self) -> None:
        self._sampler.reseed_rng()

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        if not trial_facts(trial).get("interrupted"):
            self._sampler.after_trial(study, trial, state, values)


def _counted(study: optuna.Study, trial: FrozenTrial) -> FrozenTrial:
    renumbered = copy.copy(trial)
    renumbered.number = sum(other.number < trial.number for other in counted(study.get_trials(deepcopy=False)))
    return renumbered


def random_state(sampler: BaseSampler) -> dict[str, Any]:
    """All random generators of a sampler, as plain JSON."""
    return {path: _encoded(holder.rng) for path, holder in _generators(sampler)}


def restore_random_state(sampler: BaseSampler, state: Mapping[str, Any]) -> None:
    """Restore the generators; those that are not in the state (of another sampler) stay as they are."""
    for path, holder in _generators(sampler):
        if path in state:
            kept = state[path]
            keys = np.frombuffer(base64.b64decode(kept["key"]), dtype=np.uint32)
            holder.rng.set_state(("MT19937", keys, kept["pos"], kept["has_gauss"], kept["gauss"]))


def _encoded(rng: np.random.RandomState) -> dict[str, Any]:
    _, key, position, has_gauss, gauss = rng.get_state(legacy=True)
    encoded = base64.b64encode(np.asarray(key, dtype=np.uint32).tobytes()).decode("ascii")
    return {"key": encoded, "pos": int(position), "has_gauss": int(has_gauss), "gauss": float(gauss)}


def _generators(holder: Any, path: str = "", seen: set[int] | None = None) -> Iterator[tuple[str, LazyRandomState]]:
    """Generators inside a sampler, its inner samplers and strategies, each once, with its path."""
    seen = set() if seen is None else seen
    for name, value in sorted(getattr(holder, "__dict__", {}).items()):
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, LazyRandomState):
            yield f"{path}{name}", value
        elif type(value).__module__.startswith("optuna.samplers"):
            yield from _generators(value, f"{path}{name}.", seen)


def _plain(fits: Sequence[Any]) -> list[dict[str, Any]]:
    return [{name: getattr(fit, attribute).tolist() for name, attribute in NUMBERS.items()} for fit in fits]


def _fits(plain: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The results of the sampler's last fits, from which the next ones begin."""
    import torch

    return [
        SimpleNamespace(**{NUMBERS[name]: torch.tensor(value, dtype=torch.float64) for name, value in fit.items()})
        for fit in plain
    ]
