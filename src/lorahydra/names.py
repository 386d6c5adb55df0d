"""Names of metrics, tags and artifacts, and the direction of optimisation: the only place they are spelled."""

from __future__ import annotations

from enum import StrEnum

__all__ = [
    "ADAPTER_DIR",
    "ANSWERS_FILE",
    "BASELINE",
    "BASE_DIR",
    "CHANGES_FILE",
    "CHECKPOINTS_DIR",
    "CONFIG_FILE",
    "DATA_REPORT_FILE",
    "ENVIRONMENT_FILE",
    "EVAL",
    "FINAL",
    "FINAL_PREDICTIONS_FILE",
    "GENERATION_FILE",
    "GPU_MEMORY",
    "HIGHER_IS_BETTER",
    "LEADERBOARD_FILE",
    "OBJECTIVE",
    "ORIGIN_FILE",
    "OVERRIDES_FILE",
    "PREDICTIONS_FILE",
    "RESULTS_FILE",
    "STUDY_DIR",
    "STUDY_STORE",
    "TEST",
    "TEST_PREDICTIONS_FILE",
    "TRAINING_FILE",
    "Kind",
    "Metric",
    "Score",
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
FINAL = "final"
"""Prefix of a finalist's metrics, judged on all validation examples."""


class Metric(StrEnum):
    """Metrics of a run; the unit is in the name or said beside it."""

    TRAIN_LOSS = "train/loss"
    TRAIN_LEARNING_RATE = "train/learning_rate"
    TRAIN_GRAD_NORM = "train/grad_norm"
    TRAIN_TOKENS_PER_SECOND = "train/tokens_per_second"
    EVAL_BEST_STEP = "eval/best_step"
    """Optimiser step of the lowest validation loss."""
    TIME_LOAD = "time/load_s"
    TIME_TRAIN = "time/train_s"
    TIME_GENERATE = "time/generate_s"
    TIME_BERTSCORE = "time/bertscore_s"
    TIME_JUDGE = "time/judge_s"
    TIME_TOTAL = "time/total_s"
    JUDGE_CALLS = "judge/calls"
    JUDGE_CACHE_HITS = "judge/cache_hits"
    JUDGE_RETRIES = "judge/retries"
    JUDGE_FAILURES = "judge/failures"
    JUDGE_PROMPT_TOKENS = "judge/prompt_tokens"
    JUDGE_COMPLETION_TOKENS = "judge/completion_tokens"
    JUDGE_COST = "judge/cost"
    STUDY_BEST = "study/best"
    """First objective of the best trial so far; the step is the number of finished trials."""
    STUDY_COMPLETE = "study/complete"
    STUDY_PRUNED = "study/pruned"
    STUDY_FAILED = "study/failed"


class Score(StrEnum):
    """Scores of answers: what stands behind a prefix in the name of a metric."""

    LOSS = "loss"
    BERTSCORE_PRECISION = "bertscore_precision"
    BERTSCORE_RECALL = "bertscore_recall"
    BERTSCORE_F1 = "bertscore_f1"
    JUDGE_SCORE = "judge_score"
    JUDGE_COVERAGE = "judge_coverage"
    COMBINED = "combined"
    COMBINED_LOW = "combined_low"
    COMBINED_HIGH = "combined_high"
    GAIN = "gain"
    GAIN_LOW = "gain_low"
    GAIN_HIGH = "gain_high"
    GAIN_EXAMPLES = "gain_examples"
    TRUNCATED = "cut_answers"
    LENGTH = "answer_length"


def scored(prefix: str, score: Score) -> str:
    """Name of a metric of one scored split, for example `scored(EVAL, Score.COMBINED)` → `eval/combined`."""
    return f"{prefix}/{score}"


OBJECTIVE = scored(EVAL, Score.COMBINED)
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
    JUDGE = "lorahydra.judge"
    JUDGE_MODEL = "lorahydra.judge_model"
    JUDGE_PROMPT = "lorahydra.judge_prompt"
    STUDY_ID = "lorahydra.study_id"
    BEST_TRIAL = "lorahydra.best_trial"
    BEST_RUN = "lorahydra.best_run"
    REPRODUCES = "lorahydra.reproduces"
    """The run that this one repeats."""
    EVALUATES = "lorahydra.evaluates"
    """The adapter that this run only scored: the run that trained it, or its folder."""
    GAIN = "lorahydra.gain"
    """Whether tuning helped, in words."""
    CONTINUES = "lorahydra.continues"
    """The run that is recorded to instead of this one, which `mlflow run` opened for a study that had one."""


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
ENVIRONMENT_FILE = "config/environment.json"
"""Commit, packages, machine (`lorahydra.utils.environment`)."""
CHANGES_FILE = "config/changes.diff"
"""What the code had beside its commit."""
ADAPTER_DIR = "adapter"
CHECKPOINTS_DIR = "checkpoints"
"""In a trial's output folder, not an artifact."""
TRAINING_FILE = "training.json"
"""In a trial's output folder, not an artifact: that its training has ended (`lorahydra.training.checkpoints`)."""
ORIGIN_FILE = "lorahydra.json"
"""In the adapter's folder: what it belongs to (`lorahydra.modeling.metadata`)."""
GENERATION_FILE = "generation_config.json"
"""In the adapter's folder: settings for transformers' `generate`, with the tokens that end an answer."""
BASE_DIR = "base"
"""In the adapter's folder: a copy of the base model, where one was asked for."""
ANSWERS_FILE = "answers.json"
"""In a trial's output folder, not an artifact."""
PREDICTIONS_FILE = "eval/predictions.json"
FINAL_PREDICTIONS_FILE = "final/predictions.json"
TEST_PREDICTIONS_FILE = "test/predictions.json"
LEADERBOARD_FILE = "leaderboard.csv"
STUDY_STORE = "sqlite:///studies.db"
"""Where studies are kept unless said otherwise."""
STUDY_DIR = "study"
"""Plots of a study."""
RESULTS_FILE = "optimization_results.yaml"
DATA_REPORT_FILE = "data/report.json"

GPU_MEMORY = "LORAHYDRA_GPU_MEMORY"
"""Environment variable: MiB of its GPU that a worker may take, where several workers have the same one."""
