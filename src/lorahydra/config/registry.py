"""Named functions that configurations choose: built in, installed by other packages, or registered at run time.

Each is imported only when it is used, so that what one of them needs is never loaded for another.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from lorahydra.errors import ConfigError

__all__ = ["Registry"]


class Registry:
    """All functions of one kind by name.

    Args:
        kind: What one of them is called, for messages.
        package: Package of lorahydra whose modules are the built-in ones; each exports one function.
        group: Group of the entry points by which other packages add some.
        reserved: Names that have another meaning in configurations.
    """

    def __init__(self, kind: str, package: str, group: str, reserved: frozenset[str]) -> None:
        self._kind, self._package, self._reserved = kind, package, reserved
        self.group = group
        folder = Path(__file__).parents[2].joinpath(*package.split("."))
        self.built_in = frozenset(module.name for module in pkgutil.iter_modules([str(folder)]))
        self._registered: dict[str, Callable[..., Any]] = {}
        self._entries: dict[str, EntryPoint] | None = None

    def register(self, name: str, function: Callable[..., Any]) -> None:
        """Add one, or replace one of the same name.

        Raises:
            ConfigError: The name is not valid.
        """
        self.check(name)
        self._registered[name] = function

    def check(self, name: str) -> None:
        """Refuse a name that is not valid.

        Raises:
            ConfigError: It is not.
        """
        if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) or name in self._reserved:
            reason = "it has another meaning" if name in self._reserved else "use letters, digits and _"
            raise ConfigError(f"{name!r} cannot be the name of a {self._kind}: {reason}")

    def unregister(self, name: str) -> None:
        """Take back what `register` added; does nothing for other names."""
        self._registered.pop(name, None)

    @property
    def installed(self) -> dict[str, EntryPoint]:
        """Those of other packages."""
        if self._entries is None:
            self._entries = {entry.name: entry for entry in entry_points(group=self.group)}
        return self._entries

    @property
    def names(self) -> list[str]:
        """All names, in alphabetical order."""
        return sorted({*self.built_in, *self.installed, *self._registered})

    def is_built_in(self, name: str) -> bool:
        """Whether a name means a built-in function, and not one that replaces it."""
        return name in self.built_in and name not in self._registered and name not in self.installed

    def load(self, name: str) -> Callable[..., Any]:
        """The function of a name that is in `names`.

        Raises:
            ConfigError: It is from another package, which cannot be imported.
        """
        if name in self._registered:
            return self._registered[name]
        if entry := self.installed.get(name):
            try:
                function: Callable[..., Any] = entry.load()
            except Exception as error:
                raise ConfigError(f"{self._kind} {name} ({entry.value}) cannot be imported: {error}") from error
            return function
        module = importlib.import_module(f"{self._package}.{name}")
        [attribute] = module.__all__
        built_in: Callable[..., Any] = getattr(module, attribute)
        return built_in
