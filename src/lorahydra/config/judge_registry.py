"""Which judges there are, by name: built in, installed by other packages, or registered at run time.

```python
register_judge("mine", make_mine)  # make_mine(config: JudgeConfig) -> Judge
```
An installed package adds one with an entry point in group `lorahydra.judges`. Nothing is imported before a judge is
asked for, so that the SDK of one service is never loaded for another.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from lorahydra.errors import ConfigError, JudgeNotFoundError

__all__ = ["NO_JUDGE", "is_built_in", "judge_factory", "register_judge", "registered_judges", "unregister_judge"]

NO_JUDGE = "none"
"""Name in configs for scoring without a judge."""
GROUP = "lorahydra.judges"
BUILT_IN = {
    "gemini": "lorahydra.judges.gemini:GeminiJudge",
    "gemini_legacy": "lorahydra.judges.gemini_legacy:GeminiLegacyJudge",
    "gigachat": "lorahydra.judges.gigachat:GigaChatJudge",
    "local": "lorahydra.judges.local:LocalJudge",
    "openai": "lorahydra.judges.openai:OpenAIJudge",
}

Factory = Callable[..., Any]
"""Called with a `JudgeConfig`, returns a `lorahydra.judges.Judge`."""

_registered: dict[str, Factory] = {}


def register_judge(name: str, factory: Factory) -> None:
    """Add a judge, or replace one of the same name.

    Args:
        name: What configs call it (`judge=NAME`): letters, digits and `_`.
        factory: Makes the judge from a `lorahydra.config.judge.JudgeConfig`.

    Raises:
        ConfigError: The name cannot be one.
    """
    if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) or name == NO_JUDGE:
        raise ConfigError(f"{name!r} cannot be the name of a judge: use letters, digits and _, and not {NO_JUDGE!r}")
    _registered[name] = factory


def unregister_judge(name: str) -> None:
    """Take back what `register_judge` added; unknown names are no error."""
    _registered.pop(name, None)


def registered_judges() -> list[str]:
    """Names of all judges, in alphabetical order."""
    return sorted({*BUILT_IN, *_installed(), *_registered})


def is_built_in(name: str) -> bool:
    """Whether a name means one of lorahydra's own judges, not one that replaces it."""
    return name in BUILT_IN and name not in _registered and name not in _installed()


def judge_factory(name: str) -> Factory:
    """The factory of a judge.

    Raises:
        JudgeNotFoundError: No judge has this name.
        ConfigError: It is that of another package, which cannot be imported.
    """
    if name in _registered:
        return _registered[name]
    if entry := _installed().get(name):
        try:
            factory: Factory = entry.load()
        except Exception as error:
            raise ConfigError(f"judge {name} ({entry.value}) cannot be imported: {error}") from error
        return factory
    if name not in BUILT_IN:
        raise JudgeNotFoundError(name, registered_judges())
    module, _, attribute = BUILT_IN[name].partition(":")
    built_in: Factory = getattr(importlib.import_module(module), attribute)
    return built_in


@functools.cache
def _installed() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}
