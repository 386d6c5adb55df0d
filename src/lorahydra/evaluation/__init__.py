"""From predictions and verdicts to scores, `combined` and its interval."""

from lorahydra.evaluation.evaluate import Evaluation, evaluate, judged_alike, require_coverage
from lorahydra.evaluation.judging import Judging
from lorahydra.evaluation.predictions import EvaluationSet, Predictions

__all__ = [
    "Evaluation",
    "EvaluationSet",
    "Judging",
    "Predictions",
    "evaluate",
    "judged_alike",
    "require_coverage",
]
