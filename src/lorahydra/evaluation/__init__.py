"""Generation and scoring: prompts in, answers, verdicts and `combined` with its interval out."""

from lorahydra.evaluation.evaluate import Answers, Evaluation, answer, answer_untuned, evaluate, judged_alike
from lorahydra.evaluation.examples import EvaluationSet
from lorahydra.evaluation.judging import Judging, Verdicts

__all__ = [
    "Answers",
    "Evaluation",
    "EvaluationSet",
    "Judging",
    "Verdicts",
    "answer",
    "answer_untuned",
    "evaluate",
    "judged_alike",
]
