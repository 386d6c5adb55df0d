"""ROUGE-L: the longest common subsequence of words (Lin, 2004)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lorahydra.metrics.extra import needed

__all__ = ["rouge_l"]

WORD = re.compile(r"\w+")


def rouge_l(prompts: Sequence[str], references: Sequence[str], predictions: Sequence[str]) -> list[float]:
    """The harmonic mean of precision and recall of the longest common subsequence of words; 0 without words.

    Words are runs of letters and digits of any script, in lower case, without stemming.
    """
    with needed("rouge_l", "rapidfuzz"):
        from rapidfuzz.distance import LCSseq

    def f1(prediction: str, reference: str) -> float:
        left, right = WORD.findall(prediction.lower()), WORD.findall(reference.lower())
        return 2 * LCSseq.similarity(left, right) / (len(left) + len(right)) if left and right else 0.0

    return [f1(*pair) for pair in zip(predictions, references, strict=True)]
