"""The examples that answers are scored on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["EvaluationSet"]


@dataclass(frozen=True)
class EvaluationSet:
    """The examples that answers are scored on."""

    prompts: Sequence[Sequence[int]]
    """Token ids of each prompt, as the model is asked."""
    texts: Sequence[str]
    """Each prompt for people to read."""
    references: Sequence[str]
    """What a good answer is."""
    digest: str
    """Digest of the content and of how it became prompts."""
