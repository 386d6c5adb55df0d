"""Whether a prediction is the reference."""

from __future__ import annotations

from collections.abc import Sequence

from lorahydra.metrics.text import normalized

__all__ = ["exact_match"]


def exact_match(
    prompts: Sequence[str], references: Sequence[str], predictions: Sequence[str], *, normalize: bool = True
) -> list[float]:
    """1 for a prediction that is the reference, else 0.

    Args:
        prompts: Not used.
        references: What is expected.
        predictions: What was answered.
        normalize: Compare without case, punctuation, English articles and needless white space, as in SQuAD.
    """
    seen = normalized if normalize else str
    return [float(seen(left) == seen(right)) for left, right in zip(predictions, references, strict=True)]
