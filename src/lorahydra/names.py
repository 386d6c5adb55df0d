"""Names of metrics, tags, artifacts and files, and how scores are shown: the only place where each is spelled."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

EVAL = "eval"
"""Prefix of the tuned model's metrics on the validation split."""
BASELINE = "baseline"
"""Prefix of the untuned model's metrics on the same examples."""
FEW_SHOT = "few_shot"
"""Prefix of the untuned model's metrics with training examples in its prompt, on the same examples."""
FORGETTING = "forgetting"
"""Prefix of what tuning changed on general texts and instructions (`lorahydra.evaluation.forgetting`)."""
TEST = "test"
"""Prefix of the winner's metrics on the test split."""
FINAL = "final"
"""Prefix of a finalist's metrics, judged on all validation examples."""


class Metric(StrEnum):
    """Metrics of a run. The unit is part of the name, or is in the comment beside it."""

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
    JUDGE_ALPHA = "judge/alpha"
    """Krippendorff's alpha of a panel's judges, for interval scores."""
    STUDY_BEST = "study/best"
    """First objective of the best trial so far; the step is the number of finished trials."""
    STUDY_COMPLETE = "study/complete"
    STUDY_PRUNED = "study/pruned"
    STUDY_FAILED = "study/failed"
    CHOICE_P_BEST = "choice/p_best"
    """Probability that no other trial is better than the winner."""
    CHOICE_REGRET_BOUND = "choice/regret_bound"
    """With 95 % confidence, no trial is better than the winner by more than this."""
    CHOICE_SET_SIZE = "choice/set_size"
    """Number of trials that cannot be told from the best one."""


class Score(StrEnum):
    """Scores of predictions: the part of a metric's name after the prefix."""

    LOSS = "loss"
    REWARD_ACCURACY = "reward_accuracy"
    """Share of validation pairs whose chosen answer has the higher reward (`training.method=dpo`)."""
    REWARD_MARGIN = "reward_margin"
    """How much higher it is, on average."""
    BERTSCORE_PRECISION = "bertscore_precision"
    BERTSCORE_RECALL = "bertscore_recall"
    BERTSCORE_F1 = "bertscore_f1"
    JUDGE_SCORE = "judge_score"
    JUDGE_SCORE_LENGTH_CONTROLLED = "judge_score_length_controlled"
    """The judge's score without what goes with the answers' length (`lorahydra.evaluation.length_control`)."""
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


def scored(prefix: str, score: str) -> str:
    """Name of a metric of one scored split, for example `scored(EVAL, Score.COMBINED)` → `eval/combined`."""
    return f"{prefix}/{score}"


def by_member(name: str, member: str) -> str:
    """Name of a metric of one judge of a panel, for example `eval/judge_score_openai`."""
    return f"{name}_{member}"


BERTSCORE = "bertscore"
JUDGE = "judge"
"""Names in `evaluation.weights`, beside those of metrics."""

OBJECTIVE = scored(EVAL, Score.COMBINED)
"""What a study optimises."""


@dataclass(frozen=True)
class ScoreInfo:
    """How a score is shown to people."""

    title: str
    direction: str = "maximize"
    digits: int = 4
    """Digits after the decimal point."""
    interval: tuple[str, str] | None = None
    """The ends of its 95 % interval."""

    def text(self, value: float, sign: str = "") -> str:
        """The value with as many digits as it is shown with."""
        return f"{value:{sign}.{self.digits}f}"


SCORES = {
    Score.BERTSCORE_PRECISION: ScoreInfo("BERTScore precision"),
    Score.BERTSCORE_RECALL: ScoreInfo("BERTScore recall"),
    Score.BERTSCORE_F1: ScoreInfo("BERTScore F1"),
    Score.JUDGE_SCORE: ScoreInfo("LLM judge", digits=2),
    Score.COMBINED: ScoreInfo("combined", interval=(Score.COMBINED_LOW, Score.COMBINED_HIGH)),
    Score.GAIN: ScoreInfo("gain", interval=(Score.GAIN_LOW, Score.GAIN_HIGH)),
    Score.LOSS: ScoreInfo("validation loss", direction="minimize"),
}
"""Scores that are shown to people, in the order of tables."""
HEADLINES = (Score.COMBINED, Score.BERTSCORE_F1, Score.JUDGE_SCORE)
"""The most important of these, for places with little room; a study can optimise them."""


def ends_of(metric: str) -> tuple[str, str]:
    """Names of the ends of the 95 % interval of a metric that is not one of `Score`."""
    return f"{metric}_low", f"{metric}_high"


def score_info(name: str) -> ScoreInfo:
    """How a score or a metric is shown to people."""
    known = (info for score, info in SCORES.items() if score == name)
    return next(known, ScoreInfo(name, interval=ends_of(name)))


FEWEST_EXAMPLES = 5
"""With fewer examples no claim is made from an interval: it holds too rarely or is too wide."""


class TuningEffect(StrEnum):
    """Whether tuning helped: what is said of the tuned model's `combined` less the untuned model's."""

    HIGHER = "higher"
    LOWER = "lower"
    UNCLEAR = "no_clear_difference"
    TOO_FEW = "too_few_examples"
    NO_BASELINE = "no_baseline"
    NO_TEST_ROWS = "no_test_rows"

    @classmethod
    def of(cls, low: float, high: float, count: int) -> TuningEffect:
        """What the 95 % interval of the difference on `count` examples says; the only place that decides it."""
        if count < FEWEST_EXAMPLES:
            return cls.TOO_FEW
        return cls.HIGHER if low > 0 else cls.LOWER if high < 0 else cls.UNCLEAR


class Stage(StrEnum):
    """What a study does while none of its trials runs: the first one before its trials, the others after the last."""

    WAITING = "waiting"
    """Its workers wait in the queue of a cluster, or are starting there."""
    CHOOSING = "choosing"
    """Compares the trials."""
    JUDGING = "judging"
    """Gets more verdicts on the best trials."""
    REPEATING = "repeating"
    """Trains the best settings with other seeds."""
    TESTING = "testing"
    """Scores the winner and the untuned model on the test split."""
    SAVING = "saving"
    """Writes the adapter, the leaderboard and the plots, and registers the adapter."""


SMALLEST_LOSS = 0.0005
"""Nats per token; a smaller rise of the loss is shown as 0.000, and nobody notices it."""


def is_forgotten(loss_low: float, checks_high: float) -> bool:
    """Whether a model forgot something: the only place that decides it.

    Args:
        loss_low: Lower end of the 95 % interval of how much higher its loss on general texts is.
        checks_high: Upper end of that of how much larger its share of instructions followed is.
    """
    return loss_low >= SMALLEST_LOSS or checks_high < 0


class PredictionColumn(StrEnum):
    """Columns of the predictions tables (`PREDICTIONS_FILE` and the like)."""

    PROMPT = "prompt"
    REFERENCE = "reference"
    PREDICTION = "prediction"
    BERTSCORE_F1 = "bertscore_f1"
    JUDGE_SCORE = "judge_score"
    JUDGE_REASON = "judge_reason"
    LENGTH = "answer_length"
    JUDGE_CRITERIA = "judge_criteria"
    BASELINE_PREDICTION = "baseline_prediction"
    BASELINE_BERTSCORE_F1 = "baseline_bertscore_f1"
    BASELINE_JUDGE_SCORE = "baseline_judge_score"


def score_column(metric: str) -> str:
    """Name of the column that has a metric's score of each prediction."""
    return PredictionColumn.BERTSCORE_F1 if metric == BERTSCORE else metric


MAIN_HYPERPARAMETERS = (
    *("training.learning_rate", "lora.r", "lora.lora_alpha", "lora.lora_dropout", "training.warmup_ratio"),
    "training.num_train_epochs",
)
"""Keys of the configuration that tell one trial from another, the most important first."""
HYPERPARAMETERS = (
    *MAIN_HYPERPARAMETERS,
    *("training.method", "training.dpo_beta"),
    *("training.max_steps", "training.per_device_train_batch_size", "training.gradient_accumulation_steps"),
    *("training.lr_scheduler_type", "training.weight_decay", "training.optim"),
    *("lora.target_modules", "lora.use_rslora", "lora.use_dora"),
)
"""All hyperparameters that a model card shows."""


class Tag(StrEnum):
    """Tags of a run."""

    KIND = "lorahydra.kind"
    STUDY = "lorahydra.study"
    TRIAL_NUMBER = "lorahydra.trial_number"
    STATE = "lorahydra.state"
    FAILURE = "lorahydra.failure"
    PRUNED = "lorahydra.pruned"
    """Why the study ended the trial early."""
    BASE_MODEL = "lorahydra.base_model"
    BASE_DIGEST = "lorahydra.base_digest"
    JUDGE = "lorahydra.judge"
    JUDGE_MODEL = "lorahydra.judge_model"
    JUDGE_PROMPT = "lorahydra.judge_prompt"
    STUDY_ID = "lorahydra.study_id"
    BEST_TRIAL = "lorahydra.best_trial"
    BEST_RUN = "lorahydra.best_run"
    CHOICE_SET = "lorahydra.choice_set"
    """Numbers of the trials that cannot be told from the best one."""
    ENDED_EARLY = "lorahydra.ended_early"
    """When and why the study ended before its last trial; empty if it did not."""
    WARM_START = "lorahydra.warm_start"
    """The trials of earlier studies whose settings the study began with."""
    REPEATS = "lorahydra.repeats"
    """Number of the trial whose setting this run trains with another seed."""
    REPRODUCES = "lorahydra.reproduces"
    """The run that this one repeats."""
    EVALUATES = "lorahydra.evaluates"
    """The adapter that this run only scored: the run that trained it, or its folder."""
    GAIN = "lorahydra.gain"
    """Whether tuning helped, in words."""
    FORGETTING = "lorahydra.forgetting"
    """What was forgotten by tuning, in words."""
    FEW_SHOT_GAIN = "lorahydra.few_shot_gain"
    """Whether tuning is better than examples in the prompt, in words."""
    OUTPUT_DIR = "lorahydra.output_dir"
    FINE_TUNE = "lorahydra.fine_tune"
    """Name of the fine-tune, as its page shows it."""
    DATA_FILE = "lorahydra.data_file"
    """Name of the file that was uploaded for it."""
    CONTINUES = "lorahydra.continues"
    """The run that is recorded to instead of this one, which `mlflow run` opened for a study that already had a run."""


PARENT_TAG = "mlflow.parentRunId"
COMMIT_TAG = "mlflow.source.git.commit"
"""Tags that MLflow itself reads: the run that this one is nested under, and the commit of the code."""


class Kind(StrEnum):
    """Values of `Tag.KIND`."""

    STUDY = "study"
    TRIAL = "trial"
    SINGLE = "single"
    REPEAT = "repeat"
    """A trial's setting, trained with another seed to choose a study's winner."""


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
"""Changes of the code that are not in its commit."""
ADAPTER_DIR = "adapter"
CHECKPOINTS_DIR = "checkpoints"
"""In a trial's output folder, not an artifact."""
TRAINING_FILE = "training.json"
"""In a trial's output folder, not an artifact: the record that its training has ended (`training.checkpoints`)."""
ADAPTER_CONFIG_FILE = "adapter_config.json"
"""In the adapter's folder: PEFT's configuration. A folder with this file is an adapter."""
ADAPTER_WEIGHTS_FILE = "adapter_model.safetensors"
METADATA_FILE = "lorahydra.json"
"""In the adapter's folder: what it belongs to (`lorahydra.modeling.metadata`)."""
GENERATION_FILE = "generation_config.json"
"""In the adapter's folder: settings for transformers' `generate`, with the tokens that end an answer."""
CARD_FILE = "README.md"
"""In the folder of an exported adapter or model: its model card, as the hub shows it."""
BASE_DIR = "base"
"""In the adapter's folder: a copy of the base model, with `tracking.log_base=true`."""
REPEATS_DIR = "repeats"
"""In a study's folder: the output folders of repeats (`search.seeds`)."""
ANSWERS_FILE = "answers.json"
"""In a trial's output folder, not an artifact."""
PREDICTIONS_FILE = "eval/predictions.json"
FINAL_PREDICTIONS_FILE = "final/predictions.json"
TEST_PREDICTIONS_FILE = "test/predictions.json"
LEADERBOARD_FILE = "leaderboard.csv"
STUDY_STORE = "sqlite:///studies.db"
"""Where studies are kept by default."""
STUDY_DIR = "study"
"""Plots of a study."""
RESULTS_FILE = "optimization_results.yaml"
DATA_REPORT_FILE = "data/report.json"

GPU_MEMORY = "LORAHYDRA_GPU_MEMORY"
"""Environment variable: MiB of its GPU that a worker may take if several workers have the same GPU."""
CHAMPION = "champion"
"""Alias of the version of a registered model that a study names its winner."""
