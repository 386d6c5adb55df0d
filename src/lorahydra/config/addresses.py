"""Where a judge's key goes: an address must say for which judge it is, because a key must not reach another service."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lorahydra.config.judge_registry import NO_JUDGE
from lorahydra.errors import ConfigError

__all__ = ["ADDRESSES", "refuse_shared_address"]

ADDRESSES = ("base_url", "auth_url", "api_key_env")
"""Settings of a judge that decide where a key goes."""
LOCAL = "local/default.yaml"
"""The user's own defaults, in a folder of configs."""


def refuse_shared_address(overrides: Sequence[str], folders: Sequence[Path]) -> None:
    """Refuse an address that would hold for a judge for which it was not given.

    Such are an address for several judges (`judge=a,b`), one in the user's own defaults, which hold for every judge,
    and one of an `experiment` for another judge.

    Args:
        overrides: Hydra's.
        folders: Folders of configs, which may have the user's own defaults and experiments.

    Raises:
        ConfigError: The line says what to write instead; or one of these files is not YAML.
    """
    values = {key.lstrip("+"): value for key, _, value in (override.partition("=") for override in overrides)}
    asked = values.get("judge")
    for name in ADDRESSES:
        if f"judge.{name}" in values and name != "api_key_env" and "," in (asked or ""):
            raise _refusal(f"judge.{name}", f"all of judge={asked}", name)
    experiments = [f"experiment/{name}.yaml" for name in values.get("experiment", "").split(",")]
    for file in (folder / name for folder in folders for name in (LOCAL, *experiments)):
        content = _content(file)
        given = next((name for name in ADDRESSES if name in _mapping(content.get("judge"))), None)
        named = _named(content)
        if given is not None and asked != NO_JUDGE and (asked != named if asked else named is None):
            raise _refusal(f"{file}: judge.{given}", f"judge={asked}" if asked else "any judge", given)


def _refusal(what: str, whom: str, name: str) -> ConfigError:
    return ConfigError(
        f"{what} would hold for {whom}, and a key must not go to another service: give judges.NAME.{name}"
    )


def _content(file: Path) -> Mapping[str, Any]:
    """What a file of configs has; nothing if there is none."""
    try:
        return _mapping(yaml.safe_load(file.read_text("utf-8")))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f" (line {mark.line + 1}: {getattr(error, 'problem', '')})"
        raise ConfigError(f"{file} cannot be read as YAML{where}") from error


def _named(content: Mapping[str, Any]) -> str | None:
    """The judge that a file chooses itself."""
    defaults = content.get("defaults")
    chosen = [one.get("override /judge") for one in defaults if isinstance(one, Mapping)] if defaults else []
    return next((str(name) for name in chosen if name), None)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
