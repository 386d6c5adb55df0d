"""Generation and scoring: prompts in; predictions, verdicts and `combined` with its interval out."""

from lorahydra.evaluation.evaluate import Evaluation, evaluate, judged_alike
from lorahydra.evaluation.examples import EvaluationSet
from lorahydra.evaluation.judging import Judging, Verdicts
from lorahydra.evaluation.predict import Predictions, predict, predict_baseline

__all__ = [
    "Evaluation",
    "EvaluationSet",
    "Judging",
    "Predictions",
    "Verdicts",
    "evaluate",
    "judged_alike",
    "predict",
    "predict_baseline",
]
