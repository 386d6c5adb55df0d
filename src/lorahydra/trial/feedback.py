"""Answers of a run that people have scored in MLflow's UI, as labelled answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import yaml

from lorahydra.config.compose import restored_config
from lorahydra.config.judge import RubricConfig
from lorahydra.config.schema import TrackingConfig
from lorahydra.data.labels import COLUMNS, LabelledAnswer, check_labels, number
from lorahydra.errors import ConfigError, DataError, one_line
from lorahydra.judges import JudgeCase, JudgeFault, JudgeReply
from lorahydra.judges.parsing import read_verdict
from lorahydra.judges.prompt import read_case
from lorahydra.names import CONFIG_FILE
from lorahydra.tracking.feedback import TraceFeedback, read_feedback
from lorahydra.tracking.reading import read_text

__all__ = ["labels_of_runs"]


def labels_of_runs(
    run_ids: Sequence[str], *, tracking_uri: str, columns: Mapping[str, str] | None = None
) -> list[LabelledAnswer]:
    """The answers of trials that people have scored on the traces of the judge's calls, with the judge's scores.

    If an answer has been judged or scored more than once, as by each judge of a panel, the means count. It is enough to
    score one of its traces.

    Args:
        run_ids: MLflow's runs of trials.
        tracking_uri: Where the store is.
        columns: `{"score": NAME}`, if people's overall score has another name than `score`.

    Raises:
        ConfigError: A run is not the run of a trial.
        DataError: There are too few labelled answers, or feedback is not a number.
        TrackingError: The store cannot be reached, or does not have a run.
    """
    found: dict[tuple[str, str], list[_Judged]] = {}
    source = ", ".join(f"run {run_id}" for run_id in run_ids)
    for run_id in run_ids:
        store = TrackingConfig(uri=tracking_uri)
        rubric = _rubric(store, run_id)
        traces = read_feedback(store, run_id)
        name = _score_name(traces, rubric, (columns or {}).get("score"), source)
        for trace in traces:
            judged = _judged(trace, name, rubric)
            if judged is not None:
                found.setdefault((judged.case.question, judged.case.answer), []).append(judged)
    labels = [label for alike in found.values() if (label := _mean(alike)) is not None]
    if not labels:
        raise DataError(
            "nobody has scored an answer there: open a trace of the run in MLflow's UI (Traces), and add feedback with "
            "the name score and a number",
            path=source,
        )
    check_labels(labels, source)
    return labels


def _rubric(store: TrackingConfig, run_id: str) -> RubricConfig:
    """The criteria by which the run's answers were judged."""
    text = read_text(store, run_id, CONFIG_FILE)
    values = yaml.safe_load(text) if text is not None else None
    if not isinstance(values, dict):
        raise ConfigError(f"run {run_id} has no {CONFIG_FILE}: give the run of a trial, not that of a study")
    return restored_config(values).judge.rubric


def _score_name(traces: Sequence[TraceFeedback], rubric: RubricConfig, given: str | None, source: str) -> str:
    """The name of the feedback that is people's overall score."""
    names = {name: None for trace in traces for name in trace.values}
    usual = [name for name in ([given] if given else COLUMNS["score"]) if name in names]
    others = [name for name in names if name not in rubric.criteria]
    if usual or not names:
        return (usual or [given or "score"])[0]
    if given is None and len(others) == 1:
        return others[0]
    raise DataError(
        f"no feedback has the name {given or 'score'} (found: {one_line(', '.join(names))}): name the overall score "
        "with --columns score=NAME",
        path=source,
    )


@dataclass(frozen=True)
class _Judged:
    """A call of a judge, with people's scores of the answer."""

    place: str
    case: JudgeCase
    score: float | None
    criteria: Mapping[str, float]
    judge_score: float | None
    judge_criteria: Mapping[str, float]


def _judged(trace: TraceFeedback, name: str, rubric: RubricConfig) -> _Judged | None:
    """The call that a trace is about; None if it is not a call of a judge."""
    place = f"trace {trace.trace_id}"
    case = read_case(str(trace.inputs.get("user", "")))
    if case is None:
        return None
    people = {key: _number(value, key, place) for key, value in trace.values.items() if key in rubric.criteria}
    given = trace.outputs.get("score")
    try:
        judge = read_verdict(JudgeReply(str(trace.outputs.get("reply") or ""), "", fractions=True), rubric).scores
    except JudgeFault:
        judge = {}
    return _Judged(
        place=place,
        case=case,
        score=_number(trace.values.get(name), name, place),
        criteria={key: value for key, value in people.items() if value is not None},
        judge_score=float(given) if isinstance(given, int | float) else None,
        judge_criteria=judge,
    )


def _number(value: Any, name: str, place: str) -> float | None:
    try:
        return number(value)
    except ValueError as error:
        raise DataError(f"{place}: feedback '{one_line(name)}' {error}") from error


def _mean(calls: Sequence[_Judged]) -> LabelledAnswer | None:
    """One answer out of several calls with the same texts; None if nobody has scored it."""
    first = calls[0]
    score = _mean_of([call.score for call in calls])
    if score is None:
        return None
    return LabelledAnswer(
        place=first.place,
        score=score,
        answer=first.case.answer,
        prompt=first.case.question,
        reference=first.case.reference,
        judge_score=_mean_of([call.judge_score for call in calls]),
        criteria=_means([call.criteria for call in calls]),
        judge_criteria=_means([call.judge_criteria for call in calls]),
    )


def _mean_of(values: Sequence[float | None]) -> float | None:
    given = [value for value in values if value is not None]
    return sum(given) / len(given) if given else None


def _means(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    means = {name: _mean_of([each.get(name) for each in scores]) for name in dict.fromkeys(chain(*scores))}
    return {name: mean for name, mean in means.items() if mean is not None}
