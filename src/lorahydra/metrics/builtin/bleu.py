"""BLEU (Papineni et al., 2002) through sacrebleu."""

from __future__ import annotations

from collections.abc import Sequence

from lorahydra.metrics.extra import needed
from lorahydra.metrics.loading import MetricScores

__all__ = ["bleu"]


def bleu(
    prompts: Sequence[str],
    references: Sequence[str],
    predictions: Sequence[str],
    *,
    tokenize: str = "13a",
    lowercase: bool = False,
) -> MetricScores:
    """Sacrebleu's sentence BLEU of each prediction, with as long n-grams as it has; `bleu_corpus` is that of all.

    Args:
        prompts: Not used.
        references: What is expected.
        predictions: What was answered.
        tokenize: sacrebleu's name of a tokeniser: `13a`, `intl`, `zh`, `ja-mecab`, `char` and others.
        lowercase: Compare in lower case.
    """
    with needed("bleu", "sacrebleu"):
        from sacrebleu.metrics.bleu import BLEU

    one = BLEU(effective_order=True, tokenize=tokenize, lowercase=lowercase)
    pairs = list(zip(predictions, references, strict=True))
    scores = [min(1.0, one.sentence_score(left, [right]).score / 100) for left, right in pairs]
    whole = BLEU(tokenize=tokenize, lowercase=lowercase).corpus_score(list(predictions), [list(references)])
    return MetricScores(scores, {"bleu_corpus": whole.score / 100})
