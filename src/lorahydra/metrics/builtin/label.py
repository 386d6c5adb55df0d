"""Accuracy of a classification."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from lorahydra.metrics.loading import MetricScores
from lorahydra.metrics.text import normalized

__all__ = ["label"]


def label(prompts: Sequence[str], references: Sequence[str], predictions: Sequence[str]) -> MetricScores:
    """1 for a prediction that is the label of the reference, else 0; labels are normalised as in SQuAD.

    `label_macro_f1` is the mean F1 of the labels that references have, each of which counts the same.
    """
    expected, given = [normalized(text) for text in references], [normalized(text) for text in predictions]
    right = Counter(one for one, other in zip(expected, given, strict=True) if one == other)
    total, answered = Counter(expected), Counter(given)
    f1 = [2 * right[name] / (total[name] + answered[name]) for name in total]
    scores = [float(one == other) for one, other in zip(given, expected, strict=True)]
    return MetricScores(scores, {"label_macro_f1": sum(f1) / len(f1)} if f1 else {})
