"""All judges by name: built in, installed by other packages, or registered at run time.

```python
register_judge("mine", make_mine)  # make_mine(config: JudgeConfig) -> Judge
```
An installed package adds a judge with an entry point in group `lorahydra.judges`. A judge is imported only when it is
used, so the SDK of one service is never loaded for another.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from importlib import metadata
from typing import Any

from lorahydra.config.registry import Registry
from lorahydra.errors import JudgeNotFoundError

__all__ = [
    "JUDGES",
    "NO_JUDGE",
    "PANEL",
    "choosable_judges",
    "install_command",
    "is_built_in",
    "judge_factory",
    "register_judge",
    "registered_judges",
    "sdk_package",
    "sdk_version",
    "unregister_judge",
]

NO_JUDGE = "none"
"""Name in configs for scoring without a judge."""
PANEL = "panel"
"""Name in configs for the mean of several judges; it is not a registered judge, and not an LLM."""
Factory = Callable[..., Any]
"""Called with a `JudgeConfig`, returns a `lorahydra.judges.Judge`."""

JUDGES = Registry("judge", "lorahydra.judges.builtin", "lorahydra.judges", frozenset({NO_JUDGE, PANEL}))


def register_judge(name: str, factory: Factory) -> None:
    """Add a judge, or replace one of the same name.

    Args:
        name: What configs call it (`judge=NAME`): letters, digits and `_`.
        factory: Makes the judge from a `lorahydra.config.judge.JudgeConfig`.

    Raises:
        ConfigError: The name is not valid.
    """
    JUDGES.register(name, factory)


def unregister_judge(name: str) -> None:
    """Take back what `register_judge` added; does nothing for other names."""
    JUDGES.unregister(name)


def registered_judges() -> list[str]:
    """Names of all judges, in alphabetical order."""
    return JUDGES.names


def choosable_judges() -> list[str]:
    """What `judge=` may say to have answers judged: all judges, and the panel of several."""
    return [*JUDGES.names, PANEL]


def is_built_in(name: str) -> bool:
    """Whether a name means a built-in judge, and not one that replaces it."""
    return JUDGES.is_built_in(name)


def judge_factory(name: str) -> Factory:
    """The factory of a judge.

    Raises:
        JudgeNotFoundError: No judge has this name.
        ConfigError: The judge is from another package, which cannot be imported.
    """
    if name not in JUDGES.names:
        raise JudgeNotFoundError(name, JUDGES.names)
    return JUDGES.load(name)


@functools.cache
def sdk_package(name: str) -> str | None:
    """The package with the SDK of a built-in judge, which the extra of its name installs; None if it needs none."""
    if not JUDGES.is_built_in(name):
        return None
    requirement = re.compile(rf"([\w.-]+)[^;]*;\s*extra\s*==\s*[\"']{_extra(name)}[\"']")
    matches = filter(None, map(requirement.match, metadata.requires("lorahydra") or ()))
    return next((match[1] for match in matches), None)


def sdk_version(name: str) -> str | None:
    """The installed version of a judge's SDK; None if it is not installed. The SDK is not imported."""
    package = sdk_package(name)
    try:
        return metadata.version(package) if package else None
    except metadata.PackageNotFoundError:
        return None


def install_command(name: str) -> str:
    """The command that installs the SDK of a built-in judge."""
    return f"pip install 'lorahydra[{_extra(name)}]'"


def _extra(name: str) -> str:
    return name.replace("_", "-")
