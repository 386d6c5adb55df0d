"""Names of metrics, tags and artifacts, and the direction of optimisation: the only place they are spelled."""

from __future__ import annotations

from enum import StrEnum

__all__ = [
    "ADAPTER_DIR",
    "BASELINE",
    "CONFIG_FILE",
    "DATA_REPORT_FILE",
    "EVAL",
    "HIGHER_IS_BETTER",
    "OBJECTIVE",
    "OVERRIDES_FILE",
    "PREDICTIONS_FILE",
    "TEST",
    "Kind",
    "Metric",
    "State",
    "Tag",
    "scored",
]

EVAL = "eval"
"""Prefix of the tuned model's metrics on the validation split."""
BASELINE = "baseline"
"""Prefix of the untuned model's metrics on the same examples."""
TEST = "test"
"""Prefix of the winner's metrics on the test split."""


class Metric(StrEnum):
    """Metrics of a run; the unit is in the name or said beside it."""

    TRAIN_LOSS = "train/loss"
    TRAIN_LEARNING_RATE = "train/learning_rate"
    TRAIN_GRAD_NORM = "train/grad_norm"
    TRAIN_TOKENS_PER_SECOND = "train/tokens_per_second"
    TIME_LOAD = "time/load_s"
    TIME_TRAIN = "time/train_s"
    TIME_GENERATE = "time/generate_s"
    TIME_BERTSCORE = "time/bertscore_s"
    TIME_JUDGE = "time/judge_s"
    TIME_TOTAL = "time/total_s"


def scored(prefix: str, name: str) -> str:
    """Name of a metric of one scored split, for example `scored(EVAL, "combined")` → `eval/combined`."""
    return f"{prefix}/{name}"


OBJECTIVE = scored(EVAL, "combined")
"""What a study optimises."""
HIGHER_IS_BETTER = True
"""Direction of `OBJECTIVE`."""


class Tag(StrEnum):
    """Tags of a run."""

    KIND = "lorahydra.kind"
    STUDY = "lorahydra.study"
    TRIAL_NUMBER = "lorahydra.trial_number"
    STATE = "lorahydra.state"
    FAILURE = "lorahydra.failure"
    BASE_MODEL = "lorahydra.base_model"
    BASE_DIGEST = "lorahydra.base_digest"


class Kind(StrEnum):
    """Values of `Tag.KIND`."""

    STUDY = "study"
    TRIAL = "trial"
    SINGLE = "single"


class State(StrEnum):
    """Values of `Tag.STATE`."""

    RUNNING = "running"
    COMPLETE = "complete"
    PRUNED = "pruned"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


CONFIG_FILE = "config/config.yaml"
OVERRIDES_FILE = "config/overrides.yaml"
ADAPTER_DIR = "adapter"
PREDICTIONS_FILE = "eval/predictions.json"
DATA_REPORT_FILE = "data/report.json"
