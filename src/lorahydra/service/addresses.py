"""Prefixes of the addresses of this server's routes."""

from __future__ import annotations

__all__ = ["API", "OPENAI", "is_openais"]

API = "/api/v1"
OPENAI = "/v1"
"""Of the routes for OpenAI's clients, whose base URL ends with it."""


def is_openais(path: str) -> bool:
    """Whether an address is asked by OpenAI's clients, which expect its form of errors."""
    return path.startswith(f"{OPENAI}/")
