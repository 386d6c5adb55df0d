"""What all views have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from pydantic import ConfigDict

__all__ = ["Documented", "Page"]

T = TypeVar("T")


class Documented:
    """Puts the docstrings of the fields below into OpenAPI."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(use_attribute_docstrings=True)


@dataclass(frozen=True)
class Page(Generic[T]):
    """A part of a list, newest first."""

    items: list[T]
    total: int
    """Length of the whole list."""
    limit: int
    offset: int
