"""Each check of the schema names the key, the value and what is allowed."""

from __future__ import annotations

import pytest

from lorahydra.config.schema import (
    DataConfig,
    EvaluationConfig,
    ExperimentConfig,
    JudgeConfig,
    LoraConfig,
    ModelConfig,
    TrackingConfig,
    TrainingConfig,
)
from lorahydra.config.search import SearchConfig
from lorahydra.errors import ConfigError

BAD = [
    (LoraConfig, {"r": 0}, "lora.r=0 is not allowed: it must be at least 1"),
    (LoraConfig, {"lora_alpha": 0}, "lora.lora_alpha=0"),
    (LoraConfig, {"lora_dropout": 1.0}, "lora.lora_dropout=1.0 is not allowed: it must be from 0 and below 1"),
    (LoraConfig, {"target_modules": []}, "lora.target_modules=[]"),
    (LoraConfig, {"target_modules": [""]}, "lora.target_modules="),
    (LoraConfig, {"target_modules": 3}, "lora.target_modules=3"),
    (LoraConfig, {"init_lora_weights": "pisa"}, "lora.init_lora_weights=pisa is not allowed: choose one of"),
    (LoraConfig, {"init_lora_weights": "pissa_niter_x"}, "lora.init_lora_weights=pissa_niter_x"),
    (LoraConfig, {"init_lora_weights": 3}, "lora.init_lora_weights=3"),
    (LoraConfig, {"init_lora_weights": "orthogonal", "r": 7}, "use an even rank"),
    (LoraConfig, {"init_lora_weights": "pissa", "use_dora": True}, "cannot be combined"),
    (ModelConfig, {"name_or_path": " "}, "model.name_or_path is empty"),
    (ModelConfig, {"dtype": "int8"}, "model.dtype=int8 is not allowed: choose one of auto, bfloat16"),
    (ModelConfig, {"device": "cuda:x"}, "model.device=cuda:x is not allowed"),
    (ModelConfig, {"device": "gpu"}, "model.device=gpu is not allowed"),
    (ModelConfig, {"quantization": "awq"}, "model.quantization=awq is not allowed: give nf4 or int8 or null"),
    (
        ExperimentConfig,
        {"model": ModelConfig(quantization="nf4"), "lora": LoraConfig(init_lora_weights="pissa")},
        "lora.init_lora_weights=pissa needs a base model in full precision",
    ),
    (TrainingConfig, {"learning_rate": -1.0}, "training.learning_rate=-1.0 is not allowed: it must be above 0"),
    (TrainingConfig, {"learning_rate": 2.0}, "training.learning_rate=2.0"),
    (TrainingConfig, {"learning_rate": float("nan")}, "training.learning_rate=nan"),
    (TrainingConfig, {"num_train_epochs": 0}, "training.num_train_epochs=0"),
    (TrainingConfig, {"num_train_epochs": float("inf")}, "training.num_train_epochs=inf"),
    (TrainingConfig, {"max_steps": 0}, "training.max_steps=0"),
    (TrainingConfig, {"per_device_train_batch_size": 0}, "training.per_device_train_batch_size=0"),
    (TrainingConfig, {"gradient_accumulation_steps": 0}, "training.gradient_accumulation_steps=0"),
    (TrainingConfig, {"warmup_ratio": 1.0}, "training.warmup_ratio=1.0"),
    (TrainingConfig, {"weight_decay": -0.1}, "training.weight_decay=-0.1"),
    (TrainingConfig, {"divergence_factor": 1.0}, "training.divergence_factor=1.0"),
    (TrainingConfig, {"keep": "first"}, "training.keep=first"),
    (TrainingConfig, {"early_stopping_patience": -1}, "training.early_stopping_patience=-1"),
    (TrainingConfig, {"lr_scheduler_type": "step"}, "training.lr_scheduler_type=step is not allowed: choose one of"),
    (TrainingConfig, {"optim": "adamm"}, "training.optim=adamm is not allowed (did you mean adam?): choose one of"),
    (DataConfig, {}, "neither is set"),
    (DataConfig, {"train_file": "a", "hub_name": "b"}, "both are set"),
    (DataConfig, {"train_file": " "}, "data.train_file is empty"),
    (DataConfig, {"train_file": "a", "format": "alpaca"}, "data.format=alpaca is not allowed: choose one of auto"),
    (DataConfig, {"train_file": "a", "overlong": "cut"}, "data.overlong=cut"),
    (DataConfig, {"train_file": "a", "validation_fraction": 1.0}, "data.validation_fraction=1.0"),
    (DataConfig, {"train_file": "a", "validation_fraction": 0.5, "test_fraction": 0.5}, "leave nothing to train on"),
    (DataConfig, {"train_file": "a", "max_train_rows": 0}, "data.max_train_rows=0"),
    (DataConfig, {"train_file": "a", "max_length": 1}, "data.max_length=1"),
    (EvaluationConfig, {"max_new_tokens": 0}, "evaluation.max_new_tokens=0"),
    (EvaluationConfig, {"bertscore_weight": 0.5}, "must sum to 1"),
    (EvaluationConfig, {"bertscore_weight": 1.4, "judge_weight": -0.4}, "evaluation.bertscore_weight=1.4"),
    (EvaluationConfig, {"rescale_with_baseline": True}, "needs evaluation.lang"),
    (EvaluationConfig, {"bootstrap_samples": 10}, "evaluation.bootstrap_samples=10"),
    (TrackingConfig, {"uri": ""}, "tracking.uri is empty"),
    (TrackingConfig, {"retry_seconds": -1.0}, "tracking.retry_seconds=-1.0"),
    (SearchConfig, {"indifference": -0.1}, "search.indifference=-0.1 is not allowed: it must be from 0 to 1"),
    (
        JudgeConfig,
        {"name": "foo"},
        "LLM judge model not found: 'foo'. Registered: gemini, gemini_legacy, gigachat, local, openai.",
    ),
]


@pytest.mark.parametrize(("group", "values", "message"), BAD, ids=lambda value: str(value)[:60])
def test_a_bad_value_is_one_line_that_names_it(group: type, values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        group(**values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("init", [True, False, "gaussian", "orthogonal", "pissa", "pissa_niter_4"])
def test_every_initialisation_that_is_promised_is_accepted(init: object) -> None:
    assert LoraConfig(init_lora_weights=init).init_lora_weights == init


@pytest.mark.parametrize("device", ["auto", "cpu", "mps", "cuda", "cuda:1"])
def test_every_device_that_is_promised_is_accepted(device: str) -> None:
    assert ModelConfig(device=device).device == device
