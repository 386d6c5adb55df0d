"""Records a trial in MLflow, under the names of `lorahydra.names`."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence

from omegaconf import OmegaConf

from lorahydra.config.compose import flatten, to_yaml
from lorahydra.config.schema import ExperimentConfig
from lorahydra.config.showing import without_password
from lorahydra.data import DataSplits, Split
from lorahydra.errors import one_line
from lorahydra.evaluation.agreement import krippendorff_alpha
from lorahydra.judges import JudgeCall, Judgement, JudgeSession
from lorahydra.names import (
    ADAPTER_DIR,
    CHANGES_FILE,
    CONFIG_FILE,
    DATA_REPORT_FILE,
    ENVIRONMENT_FILE,
    EVAL,
    OVERRIDES_FILE,
    Metric,
    PredictionColumn,
    Score,
    Tag,
    by_member,
    scored,
)
from lorahydra.tracking import TrackedRun, write_model_files
from lorahydra.tracking.operations import Assessments, trace
from lorahydra.training import TrainedAdapter
from lorahydra.trial.prepare import Prepared
from lorahydra.utils.databases import shown
from lorahydra.utils.environment import code_changes, environment
from lorahydra.utils.markdown import code, table

logger = logging.getLogger(__name__)

CONTEXTS = {"train": "training", "validation": "validation", "test": "test"}
"""MLflow's name for the use of each split."""
SHOWN_WARNINGS = 8

__all__ = [
    "CONTEXTS",
    "data_warnings",
    "params_of",
    "record_adapter",
    "record_data",
    "record_description",
    "record_environment",
    "record_judging",
    "record_setup",
    "without_secrets",
]


def record_setup(run: TrackedRun, config: ExperimentConfig, overrides: Sequence[str], prepared: Prepared) -> None:
    """Log everything that is fixed before training: config, overrides, data report and lineage."""
    config = without_secrets(config)
    overrides = [without_password(override) for override in overrides]
    run.params(params_of(config))
    run.text(to_yaml(config), CONFIG_FILE)
    run.text(OmegaConf.to_yaml(OmegaConf.create(list(overrides))), OVERRIDES_FILE)
    record_environment(run, str(prepared.base.device))
    run.tags({Tag.BASE_MODEL: prepared.base.source, Tag.BASE_DIGEST: prepared.base.digest or "unknown"})
    run.tags({Tag.OUTPUT_DIR: config.output_dir})
    record_data(run, prepared.splits, (prepared.splits.train, prepared.splits.validation))


def params_of(config: ExperimentConfig) -> dict[str, object]:
    """The parameters of a run, by key: MLflow compares runs by them, so the place of the output is a tag."""
    return {
        name: value
        for name, value in flatten(config).items()
        if name != "output_dir" and not name.startswith("tracking.tags")
    }


def record_data(run: TrackedRun, data: DataSplits, used: Iterable[Split]) -> None:
    """Log the data report, and the splits in use as inputs with a digest of their content."""
    run.text(json.dumps(data.report.to_dict(), ensure_ascii=False, indent=2), DATA_REPORT_FILE)
    for split in used:
        context = CONTEXTS[split.name]
        run.dataset(split.name, split.digest, split.source, len(split), context)
        for part in split.parts():
            run.dataset(
                f"{split.name}: {part.source}", part.digest, part.source, len(part), f"{context}: {part.source}"
            )


def data_warnings(warnings: Sequence[str]) -> list[str]:
    """The warnings about the data, for the description of a run."""
    hidden = len(warnings) - SHOWN_WARNINGS
    # They quote names of columns and files, which may hold anything.
    texts = [f"**Data:** {code(one_line(warning))}" for warning in warnings[:SHOWN_WARNINGS]]
    if hidden > 0:
        texts.append(f"**Data:** {hidden} more warnings are in {code(DATA_REPORT_FILE)}")
    return [line for text in texts for line in (text, "")]


def record_description(run: TrackedRun, params: Mapping[str, object], warnings: Sequence[str]) -> None:
    """Write the run's description: what was searched or set by the user, and the warnings about the data."""
    rows = [[code(name), code(value)] for name, value in params.items()]
    lines = [*data_warnings(warnings), *(table(["searched", "value"], rows) if rows else ())]
    if lines:
        run.note("\n".join(lines))


def record_environment(run: TrackedRun, device: str) -> None:
    """Log code, packages and machine, with the device that the model is on."""
    run.text(json.dumps(environment(device), ensure_ascii=False, indent=2), ENVIRONMENT_FILE)
    if changes := code_changes():
        run.text(changes, CHANGES_FILE)


def without_secrets(config: ExperimentConfig) -> ExperimentConfig:
    """The config for others to read: a tracking address may hold a password."""
    tracking = dataclasses.replace(config.tracking, uri=shown(config.tracking.uri))
    return dataclasses.replace(config, tracking=tracking)


def record_adapter(run: TrackedRun, config: ExperimentConfig, trained: TrainedAdapter, load_seconds: float) -> None:
    """Log the trained adapter, before scoring can fail."""
    logger.info("Adapter: %s", trained.folder)
    run.metrics({Metric.TIME_LOAD: load_seconds, Metric.TIME_TRAIN: trained.seconds})
    if config.tracking.log_adapter:
        if config.tracking.log_model == "all":
            write_model_files(trained.folder, with_base=config.tracking.log_base)
        run.artifact(trained.folder, ADAPTER_DIR)


def record_judging(run: TrackedRun, session: JudgeSession, judgements: Sequence[Judgement], prefix: str = EVAL) -> None:
    """Log the calls, time and cost of judging, and each call as a trace, even if there are too few verdicts.

    The judgements are on the tuned model's predictions, whose metrics have the `prefix`, and on the baseline's. If a
    run is resumed, the cost is added to what it had spent before.
    """
    calls = [call for judgement in judgements for call in judgement.calls]
    summed = {
        Metric.TIME_JUDGE: max(judgement.seconds for judgement in judgements),
        Metric.JUDGE_CALLS: len(calls),
        Metric.JUDGE_CACHE_HITS: sum(judgement.cache_hits for judgement in judgements),
        Metric.JUDGE_RETRIES: sum(call.attempt > 1 for call in calls),
        Metric.JUDGE_PROMPT_TOKENS: sum(call.prompt_tokens for call in calls),
        Metric.JUDGE_COMPLETION_TOKENS: sum(call.completion_tokens for call in calls),
        Metric.JUDGE_COST: sum(call.cost for call in calls),
    }
    run.metrics({name: value + run.before.metrics.get(name, 0) for name, value in summed.items()})
    run.metrics(
        {
            Metric.JUDGE_FAILURES: sum(judgement.failures for judgement in judgements),
            scored(prefix, Score.JUDGE_COVERAGE): judgements[0].coverage,
        }
    )
    if judgements[0].members:
        _record_panel(run, judgements, prefix)
    models = sorted({model for judgement in judgements for model in judgement.models})
    if len(models) > 1:
        logger.warning("More than one model judged (%s): scores may not be comparable", ", ".join(models))
    run.tags(
        {
            Tag.JUDGE: session.config.name,
            Tag.JUDGE_MODEL: ", ".join(models) or session.model,
            Tag.JUDGE_PROMPT: session.prompt_version,
        }
    )
    if session.config.trace:
        for call in calls:
            _record_call(run, session, call)


def _record_panel(run: TrackedRun, judgements: Sequence[Judgement], prefix: str) -> None:
    """Log each member's part, and how much the members agree on all answers that they have judged."""
    members = judgements[0].members
    given = [[score for each in judgements for score in each.members[name].given] for name in members]
    alpha = krippendorff_alpha(given)
    metrics = {by_member(scored(prefix, Score.JUDGE_COVERAGE), name): one.coverage for name, one in members.items()}
    # Over the examples that count in the panel's mean, so that the parts add up to it.
    whole = [score is not None for score in judgements[0].given]
    means = {
        name: sum(counting) / len(counting)
        for name, one in members.items()
        if (counting := [score for score, counts in zip(one.given, whole, strict=True) if score is not None and counts])
    }
    metrics |= {by_member(scored(prefix, Score.JUDGE_SCORE), name): score for name, score in means.items()}
    if not math.isnan(alpha):
        metrics[Metric.JUDGE_ALPHA] = alpha
    run.metrics(metrics)
    logger.info(
        "Judges of the panel: %s; Krippendorff's alpha %s on %d answers",
        ", ".join(f"{name} {score:.2f}" for name, score in means.items()) or "no verdicts",
        "not defined" if math.isnan(alpha) else f"{alpha:.2f}",
        sum(None not in scores for scores in zip(*given, strict=True)),
    )


def _record_call(run: TrackedRun, session: JudgeSession, call: JudgeCall) -> None:
    reply, verdict, case = call.reply, call.verdict, call.prompt.case
    found, assessments = str(call.error or ""), None
    if verdict is not None:
        found = f"{verdict.score:.1f}: {verdict.reasoning}"
        scores = {PredictionColumn.JUDGE_SCORE.value: verdict.score, **verdict.scores}
        assessments = Assessments(scores, verdict.reasoning, verdict.model)
    call_trace = trace(
        f"judge {call.judge}",
        # The case comes first: the rest of the prompt is the same in all calls.
        inputs={**dataclasses.asdict(case), "user": call.prompt.user, "system": call.prompt.system},
        outputs={
            "score": verdict.score if verdict else None,
            "reply": reply.text if reply else None,
            "fault": str(call.error) if call.error else None,
        },
        attributes={
            "model": call.model,
            "attempt": call.attempt,
            "prompt_version": session.prompt_version,
            "prompt_tokens": call.prompt_tokens,
            "completion_tokens": call.completion_tokens,
        },
        previews=(f"{case.question}\n→ {case.answer}", found),
        assessments=assessments,
        ok=call.error is None,
        start_ns=call.start_ns,
        end_ns=call.start_ns + int(call.seconds * 1e9),
    )
    run.trace(call_trace)
