"""Answers of a model without adapters beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lorahydra.modeling import generation


def generate(model: Any, prompts: Sequence[Sequence[int]], **settings: Any) -> list[list[int]]:
    """What `generation.generate` gives for the only slot."""
    [answers] = generation.generate(model, prompts, **settings)
    return answers
