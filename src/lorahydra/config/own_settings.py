"""Settings that hold for one judge only (`judges.NAME.KEY`), and the members of a panel, which have all of theirs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import ValidationError

from lorahydra.config.checks import did_you_mean, type_hints, wrong_type
from lorahydra.config.judge import NOT_A_NAME, ServiceConfig
from lorahydra.config.judge_registry import PANEL, registered_judges
from lorahydra.errors import ConfigError, JudgeNotFoundError

__all__ = ["settle_judges"]

KEYS = tuple(field.name for field in dataclasses.fields(ServiceConfig))


def settle_judges(tree: DictConfig, folder: Path) -> None:
    """Put what `judges` says of the chosen judges into `judge`, and leave out what it says of others.

    What is recorded is then only what counts, and no setting of one judge can reach another.

    Args:
        tree: An experiment in the form of the schema, changed in place.
        folder: Where the files of the judges are, which have the other settings of a panel's members.

    Raises:
        ConfigError: A judge or a key is unknown.
    """
    own = OmegaConf.to_container(tree.judges, resolve=True)
    chosen = list(tree.judge.judges) if tree.judge.name == PANEL else [tree.judge.name]
    tree.judges = {}
    if not isinstance(own, dict):
        raise ConfigError("judges takes settings by the judge's name, as in judges.openai.model=MODEL")
    for label, settings in own.items():
        _check(str(label), settings, chosen)
    if tree.judge.name == PANEL:
        kept = tree.judge.members
        tree.judge.members = {
            # What was recorded is complete, and a file may have changed since.
            label: _merged(kept.get(label) or _from_file(label, folder), label, own.get(label, {}))
            for label in chosen
        }
    elif tree.judge.name in own:
        tree.judge = _merged(tree.judge, tree.judge.name, own[tree.judge.name])


def _merged(settings: Any, label: str, own: Mapping[Any, Any]) -> Any:
    """The settings of a judge with those that are given by its name, whose keys are known."""
    try:
        with flag_override(settings, "struct", False):  # `options` has keys of its own
            return OmegaConf.merge(settings, own)
    except ValidationError as error:
        key = (error.full_key or "").removeprefix("judge.")
        if key.startswith("api_key_env"):
            raise ConfigError(NOT_A_NAME) from error  # the value may be a key
        raise wrong_type(f"judges.{label}.{key}", error.value, type_hints(ServiceConfig)[key]) from error


def _check(label: str, settings: object, chosen: list[str]) -> None:
    if not isinstance(settings, Mapping):
        raise ConfigError(f"judges.{label} takes settings by name, as in judges.{label}.model=MODEL")
    if label not in chosen and label not in registered_judges():
        raise JudgeNotFoundError(label, registered_judges())
    for key in settings:
        if key not in KEYS or (key == "name" and label in registered_judges()):
            hint = did_you_mean(str(key), KEYS)
            raise ConfigError(f"unknown key judges.{label}.{key}{hint}: a judge has {', '.join(KEYS[1:])} of its own")


def _from_file(label: str, folder: Path) -> Any:
    """The settings in a judge's file; the defaults for a judge without one, such as one of another package."""
    file = folder / f"{label}.yaml"
    content = yaml.safe_load(file.read_text("utf-8")) if label != PANEL and file.is_file() else {}
    values = {key: value for key, value in content.items() if key in KEYS}
    return OmegaConf.merge(OmegaConf.structured(ServiceConfig), {"name": label} | values)
