"""How many words a prediction and the reference share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from lorahydra.metrics.text import normalized

__all__ = ["token_f1"]


def token_f1(prompts: Sequence[str], references: Sequence[str], predictions: Sequence[str]) -> list[float]:
    """The harmonic mean of precision and recall of words, normalised as in SQuAD.

    Two texts without words are equal; a text without words shares none with another one.
    """
    return [_f1(*pair) for pair in zip(predictions, references, strict=True)]


def _f1(prediction: str, reference: str) -> float:
    left, right = normalized(prediction).split(), normalized(reference).split()
    if not left or not right:
        return float(left == right)
    return 2 * (Counter(left) & Counter(right)).total() / (len(left) + len(right))
