"""Libraries that only some metrics need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lorahydra.errors import ConfigError

__all__ = ["needed"]


@contextmanager
def needed(metric: str, library: str) -> Iterator[None]:
    """Say how to install a library if the import in the block fails.

    Raises:
        ConfigError: The library is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise ConfigError(f"metrics={metric} needs {library}: pip install 'lorahydra[metrics]'") from error
