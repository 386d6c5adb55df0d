"""Generation and scoring: prompts in, answers and `combined` with its interval out."""

from lorahydra.evaluation.evaluate import Evaluation, EvaluationSet, evaluate, evaluate_baseline

__all__ = ["Evaluation", "EvaluationSet", "evaluate", "evaluate_baseline"]
