"""What all views have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import ConfigDict

__all__ = ["Documented", "Page", "Reason"]

T = TypeVar("T")


class Documented:
    """Puts the docstrings of the fields below into OpenAPI."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(use_attribute_docstrings=True)


@dataclass(frozen=True)
class Reason(Documented):
    """What a line for people says, for programs."""

    code: str
    """Which of the sentences it is, for example `data.not_text`."""
    params: Mapping[str, Any]
    """What varies in it, by name; a value that is a sentence itself is such a reason."""


@dataclass(frozen=True)
class Page(Generic[T]):
    """A part of a list, newest first."""

    items: list[T]
    total: int
    """Length of the whole list."""
    limit: int
    offset: int
