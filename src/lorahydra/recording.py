"""What a trial leaves in MLflow, under the names of `lorahydra.names`."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence

from omegaconf import OmegaConf

from lorahydra.config.compose import flatten, to_yaml, without_password
from lorahydra.config.schema import ExperimentConfig
from lorahydra.evaluation import Evaluation
from lorahydra.evaluation.scoring import Gain
from lorahydra.names import (
    ADAPTER_DIR,
    BASELINE,
    CONFIG_FILE,
    DATA_REPORT_FILE,
    EVAL,
    OVERRIDES_FILE,
    PREDICTIONS_FILE,
    Metric,
    Tag,
    scored,
)
from lorahydra.preparation import Prepared
from lorahydra.tracking import TrackedRun
from lorahydra.tracking.address import shown
from lorahydra.training import TrainedAdapter

logger = logging.getLogger(__name__)

__all__ = ["record_adapter", "record_results", "record_setup", "run_name"]


def run_name(config: ExperimentConfig) -> str:
    """Name of a trial's run: what tells it from its neighbours."""
    model = config.model.name_or_path.rstrip("/").rpartition("/")[2]
    return config.tracking.run_name or f"{model} r={config.lora.r} lr={config.training.learning_rate:g}"


def record_setup(run: TrackedRun, config: ExperimentConfig, overrides: Sequence[str], prepared: Prepared) -> None:
    """Log what is known before training: config, overrides, data report and lineage."""
    config = _without_secrets(config)
    overrides = [without_password(override) for override in overrides]
    run.params(flatten(config))
    run.text(to_yaml(config), CONFIG_FILE)
    run.text(OmegaConf.to_yaml(OmegaConf.create(list(overrides))), OVERRIDES_FILE)
    run.text(json.dumps(prepared.splits.report.to_dict(), ensure_ascii=False, indent=2), DATA_REPORT_FILE)
    run.tags(
        {
            Tag.BASE_MODEL: prepared.base.source,
            Tag.BASE_DIGEST: prepared.base.digest or "unknown",
        }
    )
    for split, context in ((prepared.splits.train, "training"), (prepared.splits.validation, "validation")):
        run.dataset(split.name, split.digest, split.source, len(split), context)
    run.metrics({Metric.TIME_LOAD: prepared.seconds})


def _without_secrets(config: ExperimentConfig) -> ExperimentConfig:
    """The config for others to read: a tracking address may hold a password."""
    tracking = dataclasses.replace(config.tracking, uri=shown(config.tracking.uri))
    return dataclasses.replace(config, tracking=tracking)


def record_adapter(run: TrackedRun, config: ExperimentConfig, trained: TrainedAdapter) -> None:
    """Log the trained adapter; before it is scored, so that a failure there does not lose it."""
    logger.info("Adapter: %s", trained.folder)
    run.metrics({Metric.TIME_TRAIN: trained.seconds})
    if config.tracking.log_adapter:
        run.artifact(trained.folder, ADAPTER_DIR)


def record_results(
    run: TrackedRun,
    prepared: Prepared,
    trained: TrainedAdapter,
    tuned: Evaluation,
    baseline: Evaluation | None,
    gain: Gain | None,
) -> None:
    """Log what came out: scores of the tuned and the untuned model, and their answers."""
    run.metrics({Metric.TIME_GENERATE: tuned.generate_seconds, Metric.TIME_BERTSCORE: tuned.bertscore_seconds})
    run.metrics(tuned.metrics(EVAL), step=trained.steps)
    if baseline is not None:
        run.metrics(baseline.metrics(BASELINE))
    if gain is not None:
        values = {"gain": gain.mean, "gain_low": gain.low, "gain_high": gain.high}
        run.metrics({scored(EVAL, name): value for name, value in values.items()})
    _record_predictions(run, prepared, tuned, baseline)


def _record_predictions(run: TrackedRun, prepared: Prepared, tuned: Evaluation, baseline: Evaluation | None) -> None:
    columns: dict[str, Sequence[object]] = {
        "prompt": prepared.eval_set.texts,
        "reference": prepared.eval_set.references,
        "prediction": tuned.answers,
        "bertscore_f1": tuned.bertscore.f1,
        "judge_score": [None] * len(tuned.answers),
        "judge_reason": [None] * len(tuned.answers),
    }
    if baseline is not None:
        columns |= {"baseline_prediction": baseline.answers, "baseline_bertscore_f1": baseline.bertscore.f1}
    run.table(list(columns), list(zip(*columns.values(), strict=True)), PREDICTIONS_FILE)
