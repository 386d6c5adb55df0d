"""The configuration as typed dataclasses: one per Hydra group, a docstring under each field, checks on creation.

`conf/` shows the same groups as YAML; `lorahydra.config.compose` turns a composed config into these once. Nothing
here imports torch, so that a bad value is reported within a second.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from lorahydra.config.checks import at_least, check_types, names_a_folder, not_blank, within
from lorahydra.config.data import ColumnsConfig, DataConfig
from lorahydra.config.judge import JudgeConfig
from lorahydra.config.metric_registry import METRICS
from lorahydra.config.search import OBJECTIVES_OF_EXAMPLES, SearchConfig, objectives
from lorahydra.config.showing import short_repr
from lorahydra.config.training import TrainingConfig
from lorahydra.errors import ConfigError
from lorahydra.names import BERTSCORE, JUDGE

__all__ = [
    "DTYPES",
    "ColumnsConfig",
    "DataConfig",
    "Dtype",
    "EvaluationConfig",
    "ExperimentConfig",
    "JudgeConfig",
    "LoraConfig",
    "ModelConfig",
    "SearchConfig",
    "TrackingConfig",
    "TrainingConfig",
]

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)


@dataclass
class ModelConfig:
    """The frozen base model (`conf/model`)."""

    name_or_path: str = "Qwen/Qwen3-0.6B"
    """Hub id, local folder, GGUF file, or the name of a packaged model (`lorahydra models list`)."""
    revision: str | None = None
    """Branch, tag or commit of a hub model; the hub's default branch when unset."""
    gguf_file: str | None = None
    """Name of a GGUF file inside `name_or_path`, for repositories and folders that hold one."""
    device: str = "auto"
    """`auto`, `cpu`, `mps`, `cuda` or `cuda:N`; `auto` takes the first GPU, else the CPU."""
    dtype: Dtype = "auto"
    """`auto`, `float32`, `bfloat16` or `float16`; `auto` is bfloat16 on a GPU that supports it, else float32."""
    quantization: Literal["nf4", "int8"] | None = None
    """`nf4` (4 bits) or `int8` (8 bits) for the weights of the linear layers, so that a larger model fits (QLoRA, arXiv
    2305.14314); products are in `dtype`. Needs `pip install 'lorahydra[quantized]'`, and a CUDA GPU or the CPU. Full
    precision when unset."""
    attn_implementation: str | None = None
    """Attention kernel of transformers (`sdpa`, `eager`, `flash_attention_2`, …); its own choice when unset."""
    chat_template: str | None = None
    """A Jinja chat template, or the path of a file that holds one. When unset, the model's own is used, or a plain
    documented one if the model has none."""

    __repr__ = short_repr

    def __post_init__(self) -> None:
        check_types("model", self)
        not_blank("model.name_or_path", self.name_or_path)
        kind, _, index = self.device.partition(":")
        if kind not in ("auto", "cpu", "mps", "cuda") or (":" in self.device and not index.isdecimal()):
            raise ConfigError(f"model.device={self.device} is not allowed: choose auto, cpu, mps, cuda or cuda:N")


@dataclass
class LoraConfig:
    """The adapter, in PEFT's own names (`conf/lora`)."""

    r: int = 16
    """Rank."""
    lora_alpha: int = 32
    """Scale numerator: the update is multiplied by `lora_alpha / r` (`lora_alpha / sqrt(r)` with rsLoRA)."""
    lora_dropout: float = 0.0
    """Dropout on the adapter's input, 0 up to but not including 1."""
    target_modules: str | list[str] = "all-linear"
    """`all-linear`, a list of module names, or a regular expression over full module names."""
    use_rslora: bool = False
    """Rank-stabilised scaling (arXiv 2312.03732)."""
    use_dora: bool = False
    """Weight-decomposed adaptation (arXiv 2402.09353)."""
    init_lora_weights: bool | str = True
    """`true` (B is zero), `false` (random, for tests), `gaussian`, `orthogonal`, `pissa` or `pissa_niter_[n]`."""
    plus_ratio: float = 1.0
    """LoRA+ (arXiv 2402.12354): the learning rate of B is this many times that of A."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further fields of `peft.LoraConfig` by PEFT's names, for example `{exclude_modules: [down_proj]}`."""

    __repr__ = short_repr

    def __post_init__(self) -> None:
        check_types("lora", self)
        at_least("lora.r", self.r, 1)
        at_least("lora.lora_alpha", self.lora_alpha, 1)
        within("lora.lora_dropout", self.lora_dropout, 0, 1, below=True)
        at_least("lora.plus_ratio", self.plus_ratio, 0, exclusive=True)
        names = [self.target_modules] if isinstance(self.target_modules, str) else self.target_modules
        if not names or not all(map(str.strip, names)):
            raise ConfigError(
                f"lora.target_modules={self.target_modules} is not allowed: give all-linear, a list of module names, "
                "or a regular expression"
            )
        init = self.init_lora_weights
        if isinstance(init, str) and not re.fullmatch(r"gaussian|orthogonal|pissa(_niter_\d+)?", init):
            raise ConfigError(
                f"lora.init_lora_weights={init} is not allowed: choose one of true, false, gaussian, orthogonal, "
                "pissa, pissa_niter_[n]"
            )
        if init == "orthogonal" and self.r % 2:
            raise ConfigError(
                f"lora.r={self.r} is not allowed with lora.init_lora_weights=orthogonal: use an even rank"
            )
        if self.use_dora and isinstance(init, str) and init.startswith("pissa"):
            raise ConfigError("lora.use_dora=true cannot be combined with lora.init_lora_weights=pissa: choose one")


@dataclass
class EvaluationConfig:
    """Generation and scoring (`conf/evaluation`)."""

    max_new_tokens: int = 256
    """Longest generated answer in tokens."""
    batch_size: int | None = None
    """Largest number of prompts answered together, by default 32 on a CPU and 256 elsewhere; halved when memory runs
    out."""
    baseline: bool = True
    """Score the untuned model on the same examples, once per process and setting."""
    few_shot: int = 0
    """Also score the untuned model with this many training examples in its prompt, those with the most similar
    requests: is tuning better than prompting? 0 skips this."""
    forgetting: Literal["none", "winner", "all"] | bool = "none"
    """What tuning makes the model forget, on texts and instructions that lorahydra ships: measured for the `winner` (or
    `true`; also for a trial outside a study), for `all` trials, or for `none` (or `false`)."""
    bertscore_model: str = "roberta-large"
    """Encoder of BERTScore: a name that bert-score supports, a local folder, or a packaged encoder."""
    bertscore_num_layers: int | None = None
    """Layer whose outputs are compared; not needed for models that bert-score supports and for packaged encoders."""
    bertscore_batch_size: int = 64
    """Texts encoded together."""
    rescale_with_baseline: bool = False
    """Spread BERTScore over a wider band: the score of unrelated texts becomes 0, and a worse one is negative."""
    lang: str | None = None
    """Language code of the baseline that bert-score ships, for example `en`."""
    bertscore_baseline_file: str | None = None
    """Baseline of an encoder for which bert-score ships none: a file with the columns `LAYER,P,R,F`."""
    bertscore_weight: float = 0.4
    """Weight of BERTScore in `combined` when a judge is on, unless `weights` is set."""
    judge_weight: float = 0.6
    """Weight of the judge in `combined` when a judge is on, unless `weights` is set."""
    weights: dict[str, Any] = field(default_factory=dict)
    """Weights of `bertscore`, `judge` and chosen metrics in `combined`, which sum to 1, for example `{exact_match: 0.5,
    judge: 0.5}`. Without a judge, its weight goes to the others in proportion to theirs."""
    bootstrap_samples: int = 1000
    """Resamples of the bootstrap behind the 95 % intervals of `combined` and of the gain."""

    __repr__ = short_repr

    def __post_init__(self) -> None:
        if isinstance(self.forgetting, bool):
            self.forgetting = "winner" if self.forgetting else "none"
        check_types("evaluation", self)
        for name in ("max_new_tokens", "batch_size", "bertscore_num_layers", "bertscore_batch_size"):
            at_least(f"evaluation.{name}", getattr(self, name), 1)
        at_least("evaluation.bootstrap_samples", self.bootstrap_samples, 100)
        within("evaluation.few_shot", self.few_shot, 0, 64)
        not_blank("evaluation.bertscore_model", self.bertscore_model)
        within("evaluation.bertscore_weight", self.bertscore_weight, 0, 1)
        within("evaluation.judge_weight", self.judge_weight, 0, 1)
        if not math.isclose(self.bertscore_weight + self.judge_weight, 1, abs_tol=1e-9):
            raise ConfigError(
                f"evaluation.bertscore_weight={self.bertscore_weight} and evaluation.judge_weight={self.judge_weight} "
                "must sum to 1"
            )
        for name, weight in self.weights.items():
            if isinstance(weight, bool) or not isinstance(weight, int | float):
                raise ConfigError(f"evaluation.weights.{name}={weight} is not allowed: give a number from 0 to 1")
            within(f"evaluation.weights.{name}", weight, 0, 1)
        if self.weights and not math.isclose(total := sum(self.weights.values()), 1, abs_tol=1e-9):
            raise ConfigError(f"evaluation.weights must sum to 1, and they sum to {total:.6g}")
        if self.rescale_with_baseline and not self.lang and self.bertscore_baseline_file is None:
            raise ConfigError(
                "evaluation.rescale_with_baseline=true needs evaluation.lang, for example evaluation.lang=en, or "
                "evaluation.bertscore_baseline_file"
            )
        if self.bertscore_baseline_file is not None and not self.rescale_with_baseline:
            raise ConfigError("evaluation.bertscore_baseline_file is for evaluation.rescale_with_baseline=true")

    def weights_with(self, *, judge: bool) -> tuple[dict[str, float], float]:
        """The weights of metrics by name, and that of the judge, in `combined`; they sum to 1.

        Args:
            judge: Whether a judge is on; without one, its weight goes to the metrics in proportion to theirs.
        """
        weights = dict(self.weights) or {BERTSCORE: self.bertscore_weight, JUDGE: self.judge_weight}
        of_judge = float(weights.pop(JUDGE, 0.0))
        total = math.fsum(weights.values())
        if judge:
            return weights, of_judge
        return ({name: weight / total for name, weight in weights.items()} if total else {BERTSCORE: 1.0}), 0.0


NAME_LENGTHS = {"experiment_name": 256, "run_name": 250, "artifact_location": 256}
"""Characters that MLflow's databases keep."""


@dataclass
class TrackingConfig:
    """MLflow (`conf/tracking`)."""

    uri: str = "sqlite:///mlflow.db"
    """Tracking store: a SQLite or PostgreSQL URL, or the address of an MLflow server."""
    experiment_name: str = "lorahydra"
    """MLflow experiment."""
    run_name: str | None = None
    """Name of the run; made from the model, rank and learning rate when unset."""
    tags: dict[str, Any] = field(default_factory=dict)
    """More tags of each run: `tracking.tags={team: support}`."""
    run_id: str | None = None
    """Run to record to instead of a new one, in its own experiment: the run of the trial, or of the study. `mlflow run`
    sets it."""
    artifact_location: str | None = None
    """Where a newly made experiment keeps its artifacts; when unset, `mlartifacts/` beside a SQLite file, and the
    server's own choice otherwise."""
    log_adapter: bool = True
    """Upload the adapter as an artifact."""
    log_model: Literal["winner", "all", "none"] = "winner"
    """Which adapters are also MLflow models, to be loaded and served by MLflow: `winner` of a study, `all` or
    `none`."""
    log_base: bool = False
    """Copy the base model's weights into these models too; by default they refer to it by name."""
    system_metrics: bool = True
    """Sample CPU, memory, disk and GPU use into the run."""
    mirrors: list[str] = field(default_factory=list)
    """Copies of each trial's metrics and params: `tensorboard` (event files in `tensorboard/` of the trial's folder)
    and `wandb` (an offline run in `wandb/`; `WANDB_MODE=online` sends it). Needs `pip install
    'lorahydra[tensorboard]'` or `'lorahydra[wandb]'`."""
    retry_seconds: float = 60.0
    """How long trials and studies wait for a store that cannot be reached: when one begins, at its end, and when a
    winner is registered. What a trial could not send by then stays in its output folder for `lorahydra sync`."""

    __repr__ = short_repr

    def __post_init__(self) -> None:
        check_types("tracking", self)
        not_blank("tracking.uri", self.uri)
        not_blank("tracking.experiment_name", self.experiment_name)
        for name, limit in NAME_LENGTHS.items():
            length = len(getattr(self, name) or "")
            if length > limit:
                raise ConfigError(f"tracking.{name} has {length} characters, and MLflow keeps {limit}: shorten it")
        at_least("tracking.retry_seconds", self.retry_seconds, 0)
        if self.run_id is not None and not re.fullmatch(r"[0-9a-f]{32}", self.run_id):
            raise ConfigError(
                f"tracking.run_id={self.run_id} is not the id of an MLflow run: ids have 32 hexadecimal digits"
            )


@dataclass
class ExperimentConfig:
    """One trial: everything that `lorahydra.trial.run.run_trial` needs."""

    model: ModelConfig = field(default_factory=ModelConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    judges: dict[str, Any] = field(default_factory=dict)
    """Settings that hold for one judge only, whether it is chosen alone or in a panel, for example
    `judges.openai.base_url=http://127.0.0.1:8000/v1`: the keys of a member of a panel, without its name."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """Metrics beside BERTScore, each with its settings (`conf/metrics`): `metrics=[exact_match,rouge_l]`. One of your
    own is a function in a Python file: `metrics=polite metrics.polite.file=polite.py`."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    data: DataConfig = field(default_factory=lambda: DataConfig(train_file="demo"))
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    study: str | None = None
    """Name of the study, with `-m`; a study that already exists is resumed. A new unique name when unset."""
    objective: str | list[str] = "combined"
    """What a study optimises: `combined`, `bertscore_f1`, `judge_score`, `loss`, `time` (s) or `adapter_size` (bytes),
    or a list of them for a Pareto front."""
    seed: int = 42
    """Seeds the adapter's initialisation, the order of examples, dropout, the split and the bootstrap."""
    output_dir: str = "outputs/trial"
    """Folder for the adapter, checkpoints and everything that could not be sent to MLflow yet."""

    __repr__ = short_repr

    def __post_init__(self) -> None:
        check_types("", self)
        if self.study is not None:
            names_a_folder("study", self.study)
        names = objectives(self.objective)
        if "judge_score" in names and self.judge.name == "none":
            raise ConfigError("objective=judge_score needs a judge, for example judge=gemini")
        self._check_metrics()
        self._check_search(names)
        self._settle_method()
        init, quantization = self.lora.init_lora_weights, self.model.quantization
        if quantization is not None and isinstance(init, str) and init != "gaussian":
            raise ConfigError(
                f"lora.init_lora_weights={init} needs a base model in full precision: choose another value, or leave "
                f"out model.quantization={quantization}"
            )
        within("seed", self.seed, 0, 2**32 - 1)
        not_blank("output_dir", self.output_dir)

    def _settle_method(self) -> None:
        """With `dpo`, data are pairs of answers."""
        if self.training.method == "dpo" and self.data.format == "auto":
            self.data = replace(self.data, format="preference")
        if (self.training.method == "dpo") != (self.data.format == "preference"):
            raise ConfigError(
                f"data.format={self.data.format} does not fit training.method={self.training.method}: dpo learns from "
                "pairs of answers (preference), and sft from all other formats"
            )

    def _check_metrics(self) -> None:
        for name, settings in self.metrics.items():
            METRICS.check(name)
            if settings is not None and not isinstance(settings, dict):
                raise ConfigError(f"metrics.{name}={settings} is not allowed: give settings by name")
        weights = self.evaluation.weights
        if unknown := [name for name in weights if name not in (BERTSCORE, JUDGE, *self.metrics)]:
            raise ConfigError(
                f"evaluation.weights.{unknown[0]} names a metric that is not chosen: add it with metrics={unknown[0]}"
            )
        if (
            weights
            and self.judge.name == "none"
            and not sum(weights.get(name, 0) for name in (BERTSCORE, *self.metrics))
        ):
            raise ConfigError("evaluation.weights gives all weight to the judge: choose one, for example judge=gemini")

    def _check_search(self, names: list[str]) -> None:
        if self.search.max_forgetting is not None:
            self.evaluation.forgetting = "all"
        of_examples = len(names) == 1 and names[0] in OBJECTIVES_OF_EXAMPLES
        if self.search.stop_when_sure and not of_examples:
            raise ConfigError(
                f"search.stop_when_sure=true needs one objective of {', '.join(OBJECTIVES_OF_EXAMPLES)}, because "
                f"search.indifference is a difference of these; objective={', '.join(names)}"
            )
        if self.search.stop_when_sure and self.search.indifference == 0:
            raise ConfigError("search.stop_when_sure=true needs search.indifference above 0: any trial may gain more")
        if self.search.seeds and not of_examples:
            raise ConfigError(
                f"search.seeds={self.search.seeds} needs one objective of {', '.join(OBJECTIVES_OF_EXAMPLES)}, because "
                f"trials are compared by their scores on the examples; objective={', '.join(names)}"
            )
