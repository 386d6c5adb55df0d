"""The random state of Optuna's samplers, with which a resumed study draws the same as an uninterrupted one."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from optuna.samplers import BaseSampler

from lorahydra.sweep.compat import LazyRandomState

__all__ = ["random_state", "restore_random_state"]


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
    return {
        "key": base64.b64encode(np.asarray(key, dtype=np.uint32).tobytes()).decode("ascii"),
        "pos": int(position),
        "has_gauss": int(has_gauss),
        "gauss": float(gauss),
    }


def _generators(holder: Any, path: str = "", seen: set[int] | None = None) -> Iterator[tuple[str, LazyRandomState]]:
    """Generators inside a sampler, its inner samplers and strategies, each once, with its path."""
    seen = set() if seen is None else seen
    for name, value in sorted(getattr(holder, "__dict__", {}).items()):
        if id(value) in seen:
            continue
        if isinstance(value, LazyRandomState):
            seen.add(id(value))
            yield f"{path}{name}", value
        elif type(value).__module__.startswith("optuna.samplers"):
            seen.add(id(value))
            yield from _generators(value, f"{path}{name}.", seen)
