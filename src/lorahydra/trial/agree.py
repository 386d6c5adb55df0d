"""Whether a judge can be trusted: its scores beside those that people gave to the same answers.

```python
report = judge_agreement(read_labels("labels.csv"), compose(["judge=gemini"]))
report.overall.pairwise
```
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lorahydra.config.judge_registry import NO_JUDGE
from lorahydra.config.schema import ExperimentConfig
from lorahydra.data.labels import FEWEST, LabelledAnswer
from lorahydra.errors import ConfigError, DataError, LorahydraError
from lorahydra.evaluation import require_coverage
from lorahydra.evaluation.agreement import Agreement, Estimate, agreement, spearman
from lorahydra.evaluation.weighting import Suggestion, suggest_weight
from lorahydra.judges import JudgeCase, Judgement, ready_session, start_judging
from lorahydra.names import BERTSCORE
from lorahydra.utils.progress import Progress

__all__ = ["AgreementReport", "judge_agreement"]

FEWEST_OTHERS = 5
"""Answers whose score by people is not the most frequent one; with fewer, resamples say nothing of the noise."""
ANOTHER_SCALE = 10
"""If no score of a judge is higher, the scores are probably not from 0 to 100."""


@dataclass
class AgreementReport:
    """How a judge's scores compare with people's."""

    judge: str
    """Who judged."""
    answers: int
    """Answers with a person's score and a judge's."""
    without_verdict: int
    """Answers that have only a person's score; they do not count."""
    overall: Agreement
    criteria: dict[str, Agreement]
    """By criterion that people scored, too."""
    judge_and_length: Estimate
    """Spearman's correlation of the judge's score with the answer's length in characters."""
    people_and_length: Estimate
    weight: Suggestion | None
    """The judge's weight in `combined`; None if there is no BERTScore."""
    remarks: list[str]
    """What the reader should know of these figures, a sentence each."""
    calls: int = 0
    cost: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON has it; null where something is not defined."""
        content: dict[str, Any] = _plain(dataclasses.asdict(self))
        if self.weight is not None:
            content["weight"]["is_clear"] = self.weight.is_clear
        return content


def judge_agreement(
    labels: Sequence[LabelledAnswer], config: ExperimentConfig, *, ask: bool = False, progress: Progress | None = None
) -> AgreementReport:
    """Compare people's scores with those of a judge, which is asked unless the labels hold its scores.

    Args:
        labels: Of `read_labels`.
        config: The judge, the encoder of BERTScore, the present weights and the seed of the bootstrap.
        ask: Whether the judge is asked in any case.
        progress: Where to show the progress.

    Raises:
        ConfigError: There is no judge to ask.
        DataError: There is nothing to ask a judge about, or there are too few verdicts left to compare.
        JudgeError: The judge gives too few verdicts.
    """
    given = not ask and any(label.judge_score is not None for label in labels)
    verdicts = None if given else _ask(labels, config, progress or Progress())
    if verdicts is not None:
        require_coverage(verdicts)
        labels = [_judged(label, verdicts, at) for at, label in enumerate(labels)]
    judged = [label for label in labels if label.judge_score is not None]
    if len(judged) < FEWEST:
        raise DataError(f"{len(judged)} of {len(labels)} answers have a judge's score: at least {FEWEST} are needed")
    if len({label.score for label in judged}) == 1:
        raise DataError(
            f"people gave the same score to all {len(judged)} answers that have a judge's score: a ranking needs "
            "different ones"
        )
    remarks = _remarks(judged, config, verdicts)
    weight = _weight(judged, config, verdicts, remarks)
    people, judge = [label.score for label in judged], [label.judge_score or 0.0 for label in judged]
    lengths, seed = [len(label.answer) for label in judged], config.seed
    return AgreementReport(
        judge=_name(config, verdicts),
        answers=len(judged),
        without_verdict=len(labels) - len(judged),
        overall=agreement(people, judge, seed=seed),
        criteria=_criteria(judged, seed),
        judge_and_length=spearman(judge, lengths, seed=seed),
        people_and_length=spearman(people, lengths, seed=seed),
        weight=weight,
        remarks=remarks,
        calls=0 if verdicts is None else len(verdicts.calls),
        cost=0.0 if verdicts is None else sum(call.cost for call in verdicts.calls),
    )


def _ask(labels: Sequence[LabelledAnswer], config: ExperimentConfig, progress: Progress) -> Judgement:
    if not any(label.prompt for label in labels):
        raise DataError("there is no column prompt or question: a judge has to know what was asked")
    if config.judge.name == NO_JUDGE:
        raise ConfigError("there is no column judge_score, and no judge to ask: name one, for example judge=gemini")
    session = ready_session(config.judge)
    assert session is not None
    cases = [JudgeCase(label.prompt, label.reference, label.answer) for label in labels]
    return start_judging(session, cases, config.judge.repeats).wait(progress)


def _judged(label: LabelledAnswer, verdicts: Judgement, at: int) -> LabelledAnswer:
    """The labelled answer with the verdict on it."""
    given = verdicts.verdicts[at]
    criteria = {
        name: sum(verdict.scores[name] for verdict in given) / len(given) for name in (given[0].scores if given else ())
    }
    return dataclasses.replace(label, judge_score=verdicts.given[at], judge_criteria=criteria)


def _name(config: ExperimentConfig, verdicts: Judgement | None) -> str:
    return (
        "the judge's scores in the labels"
        if verdicts is None
        else f"{config.judge.name} ({', '.join(verdicts.models)})"
    )


def _criteria(labels: Sequence[LabelledAnswer], seed: int) -> dict[str, Agreement]:
    """The agreement on each criterion for which enough answers have both sides' scores."""
    names = {name: None for label in labels for name in label.criteria}
    compared = {}
    for name in names:
        both = [label for label in labels if name in label.criteria and name in label.judge_criteria]
        if len(both) >= FEWEST:
            people, judge = ([side[name] for side in sides] for sides in _sides(both))
            compared[name] = agreement(people, judge, seed=seed)
    return compared


def _sides(labels: Sequence[LabelledAnswer]) -> tuple[list[Any], list[Any]]:
    return [label.criteria for label in labels], [label.judge_criteria for label in labels]


def _remarks(labels: Sequence[LabelledAnswer], config: ExperimentConfig, verdicts: Judgement | None) -> list[str]:
    remarks = []
    if len({label.judge_score for label in labels}) == 1:
        remarks.append("The judge gave all answers the same score, so it cannot tell them apart.")
    if (others := _others(labels)) < FEWEST_OTHERS:
        remarks.append(
            f"People gave all but {others} of the answers the same score, so these figures say little, whatever their "
            "intervals are."
        )
    if verdicts is None and config.judge.name != NO_JUDGE:
        remarks.append(f"The labels hold a judge's scores, so {config.judge.name} was not asked; --ask asks it.")
    if verdicts is not None and any(not label.reference for label in labels):
        remarks.append(
            "Some answers have no reference, beside which a trial's answers are judged: in a study the judge may agree "
            "with people more, or less."
        )
    return remarks


def _others(labels: Sequence[LabelledAnswer]) -> int:
    """Answers to which people did not give their most frequent score."""
    return len(labels) - max(Counter(label.score for label in labels).values())


def _weight(
    labels: Sequence[LabelledAnswer], config: ExperimentConfig, verdicts: Judgement | None, remarks: list[str]
) -> Suggestion | None:
    """The weight that fits best; None, with a remark, if the labels cannot tell."""
    metrics, present = config.evaluation.weights_with(judge=True)
    others = [name for name, weight in metrics.items() if weight and name != BERTSCORE]
    reason = f"combined also has {', '.join(others)}" if others else _why_not_weighed(labels, verdicts)
    bertscore = [label.bertscore_f1 for label in labels]
    if reason is None and None in bertscore:
        try:
            bertscore = _bertscore(labels, config)
        except LorahydraError as error:
            reason = str(error)
    if reason is not None:
        remarks.append(f"The weight of BERTScore is not compared: {reason}.")
        return None
    if config.evaluation.weights:
        remarks.append(
            "evaluation.weights is set, so another weight belongs there: judge_weight has no effect beside it."
        )
    return suggest_weight(
        [label.score for label in labels],
        [label.judge_score or 0.0 for label in labels],
        [score or 0.0 for score in bertscore],
        present=present,
        seed=config.seed,
    )


def _why_not_weighed(labels: Sequence[LabelledAnswer], verdicts: Judgement | None) -> str | None:
    """Why no weight can be found, as the end of a sentence."""
    if _others(labels) < FEWEST_OTHERS:
        return "people gave nearly all answers the same score"
    judge = [label.judge_score or 0.0 for label in labels]
    # A judge that is asked answers on the right scale, however little it likes the answers.
    if verdicts is None and not (min(judge) >= 0 and ANOTHER_SCALE < max(judge) <= 100):
        return f"judge_score must be from 0 to 100, and in these labels it is from {min(judge):g} to {max(judge):g}"
    highest = max(label.bertscore_f1 or 0.0 for label in labels)
    if highest > 1:
        return f"bertscore_f1 must be at most 1, and in these labels it is up to {highest:g}"
    if any(label.bertscore_f1 is None for label in labels) and not all(label.reference for label in labels):
        return "not all answers have a reference"
    return None


def _bertscore(labels: Sequence[LabelledAnswer], config: ExperimentConfig) -> list[float | None]:
    # Imported here: torch takes seconds, which labels with scores do not need.
    from lorahydra.metrics.bertscore import load_scorer
    from lorahydra.modeling.devices import resolve_device

    scorer = load_scorer(config.evaluation, resolve_device(config.model.device))
    return list(scorer.score([label.answer for label in labels], [label.reference for label in labels]).f1)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
