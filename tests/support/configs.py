"""Configurations, composed once for equal overrides: a composition takes a tenth of a second."""

from __future__ import annotations

import copy
import dataclasses
import functools

from lorahydra.config.compose import compose
from lorahydra.config.judge import JudgeConfig
from lorahydra.config.schema import ExperimentConfig


def composed(*overrides: str) -> ExperimentConfig:
    """What `compose` makes of the overrides; not for tests of composing itself, or of variables that it reads."""
    return copy.deepcopy(_composed(overrides))


def judge_config(name: str, *overrides: str, **addresses: str) -> JudgeConfig:
    """Settings of a judge, with `addresses` where the overrides set none."""
    config = composed(f"judge={name}", *overrides).judge
    return dataclasses.replace(config, **{key: url for key, url in addresses.items() if getattr(config, key) is None})


@functools.cache
def _composed(overrides: tuple[str, ...]) -> ExperimentConfig:
    return compose(overrides)
