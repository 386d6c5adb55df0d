"""Values in `conf/` that depend on something else.

`${lora_env:NAME,kind,default}` comes from a `LORA_*` environment variable, `${by_method:SFT,DPO}` is the first or the
second value by `training.method`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

from omegaconf import OmegaConf

from lorahydra.errors import ConfigError

__all__ = ["register_resolver"]

KINDS: dict[str, tuple[Callable[[str], Any], str]] = {
    "int": (int, "a whole number"),
    "float": (float, "a number"),
    "str": (str, "text"),
}


def register_resolver() -> None:
    """Register the resolvers with OmegaConf; may be called again."""
    OmegaConf.register_resolver("lora_env", _from_environment, replace=True)
    OmegaConf.register_resolver("by_method", _by_method, replace=True)


def _by_method(sft: Any, dpo: Any, *, _root_: Any) -> Any:
    """The value for the method of training."""
    return dpo if OmegaConf.select(_root_, "training.method") == "dpo" else sft


def _from_environment(name: str, kind: str, default: Any) -> Any:
    """The variable's value as `kind`, else the default."""
    value = os.environ.get(name)
    if value is None or not value.strip():
        return default
    parse, described = KINDS[kind]
    try:
        parsed = parse(value)
        if isinstance(parsed, float) and not math.isfinite(parsed):
            raise ValueError(value)
        return parsed
    except ValueError:
        raise ConfigError(f"environment variable {name}={value!r} is not {described}") from None
