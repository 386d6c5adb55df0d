"""chrF (Popović, 2015) through sacrebleu: n-grams of characters, which suits languages with many word forms."""

from __future__ import annotations

from collections.abc import Sequence

from lorahydra.metrics.extra import needed

__all__ = ["chrf"]


def chrf(
    prompts: Sequence[str],
    references: Sequence[str],
    predictions: Sequence[str],
    *,
    word_order: int = 0,
    lowercase: bool = False,
) -> list[float]:
    """Sacrebleu's sentence chrF of each prediction.

    Args:
        prompts: Not used.
        references: What is expected.
        predictions: What was answered.
        word_order: Longest n-gram of words that counts as well; 2 is chrF++.
        lowercase: Compare in lower case.
    """
    with needed("chrf", "sacrebleu"):
        from sacrebleu.metrics.chrf import CHRF

    one = CHRF(word_order=word_order, lowercase=lowercase)
    pairs = zip(predictions, references, strict=True)
    return [min(1.0, one.sentence_score(left, [right]).score / 100) for left, right in pairs]
