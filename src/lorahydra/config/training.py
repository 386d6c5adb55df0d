"""The training of an adapter, as `conf/training` sets it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from lorahydra.config.checks import at_least, check_types, within
from lorahydra.config.showing import short_repr

__all__ = ["TrainingConfig"]

Optimizer = (
    Literal["adamw_torch", "adamw_torch_fused", "adafactor", "adadelta", "adagrad", "adam", "adamax", "adamw", "muon"]
    | Literal["nadam", "radam", "rmsprop", "sgd"]
    | Literal["adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "ademamix", "ademamix_8bit"]
    | Literal["paged_ademamix_8bit", "paged_ademamix_32bit", "lion_8bit", "lion_32bit", "paged_lion_8bit"]
    | Literal["paged_lion_32bit", "rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit"]
)


@dataclass
class TrainingConfig:
    """Training of one adapter, in the names of `transformers.TrainingArguments` (`conf/training`)."""

    num_train_epochs: float = 3.0
    """Passes over the training split; a fraction is allowed."""
    max_steps: int = -1
    """Optimiser steps; when above 0 it replaces `num_train_epochs`."""
    per_device_train_batch_size: int = 4
    """Examples per device and forward pass; with `dpo` a pair is one example."""
    per_device_eval_batch_size: int = 8
    """Examples per device when the validation loss is measured."""
    gradient_accumulation_steps: int = 1
    """Forward passes per optimiser step."""
    method: Literal["sft", "dpo"] = "sft"
    """`sft` learns the answers. `dpo` (arXiv 2305.18290) learns to prefer one answer to another from pairs of them; the
    untuned model is the reference."""
    dpo_beta: float = 0.1
    """With `dpo`, how strongly the model is kept near the reference."""
    dpo_label_smoothing: float = 0.0
    """With `dpo`, the share of pairs that are assumed to be in the wrong order, below 0.5."""
    learning_rate: float = 1e-4
    """Peak learning rate."""
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt"] = (
        "linear"
    )
    """Shape of the learning rate after the warm-up."""
    warmup_ratio: float = 0.03
    """Share of all steps in which the learning rate rises from 0."""
    weight_decay: float = 0.0
    """The optimiser's weight decay on the adapter; decoupled from the gradient in AdamW, Lion, AdEMAMix and Muon."""
    max_grad_norm: float = 1.0
    """Gradient norm is clipped to this; 0 turns clipping off."""
    optim: Optimizer = "adamw_torch"
    """Optimiser, with its library's defaults except for the rate, `weight_decay` and `extra`. `adamw` is `adamw_torch`.
    Those with `8bit`, `32bit` or `bnb` in their names and `ademamix` are from bitsandbytes (`pip install
    'lorahydra[quantized]'`). On a GPU, the paged ones can move their state to CPU memory. Good rates differ:
    Lion's is about a third of AdamW's or less, and that of Muon, which takes matrices only (no DoRA), is on AdamW's
    scale with `extra={adjust_lr_fn: match_rms_adamw}`."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the optimiser by its own names, for example `{betas: [0.9, 0.95]}`."""
    matmul_precision: Literal["auto", "highest", "high", "medium"] = "auto"
    """How float32 factors are multiplied in training, with torch's meaning: `highest` (float32), `high` (TF32) or
    `medium` (bfloat16). On a CPU, `medium` is for the frozen layers, on processors that multiply in bfloat16. `auto` is
    `medium` on a CPU and `highest` elsewhere."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    group_by_length: bool = True
    """Put examples of similar length into a batch: less padding, same examples per epoch."""
    evals_per_epoch: int = 1
    """How often the validation loss is measured in each epoch; 0 measures it only after training."""
    keep: Literal["best", "last"] = "best"
    """Which adapter is saved and scored: `best`, as it was when the validation loss was lowest, or `last`."""
    early_stopping_patience: int = 0
    """Training ends after this many validations in a row without a new lowest loss; 0 turns this off."""
    logging_steps: int = 1
    """Optimiser steps between logged training metrics."""
    save_steps: int = 0
    """Optimiser steps between checkpoints within the trial, of which the last two are kept; 0 keeps none."""
    resume: bool = False
    """Resume the trial in the output folder, if it was made with the same settings. A training that has ended is not
    repeated; otherwise it goes on from the newest complete checkpoint, or begins again if there is none."""
    divergence_factor: float = 4.0
    """The trial stops as diverged when the smoothed training loss exceeds the first steps' mean by this factor."""
    seed: int | None = None
    """Seeds the adapter's initialisation, the order of examples and dropout, and nothing else; `seed` when unset."""
    pack: int | Literal["auto"] = "auto"
    """Trials of a study that are trained side by side, each as if it were alone: a number, or `auto` for 1 on a CPU
    and up to 8 on a GPU."""

    __repr__ = short_repr

    def __post_init__(self) -> None:
        check_types("training", self)
        at_least("training.dpo_beta", self.dpo_beta, 0, exclusive=True)
        within("training.dpo_label_smoothing", self.dpo_label_smoothing, 0, 0.5, below=True)
        at_least("training.num_train_epochs", self.num_train_epochs, 0, exclusive=True)
        if self.max_steps != -1:
            at_least("training.max_steps", self.max_steps, 1)
        for name in (
            "per_device_train_batch_size",
            "per_device_eval_batch_size",
            "gradient_accumulation_steps",
            "logging_steps",
            "pack",
        ):
            at_least(f"training.{name}", getattr(self, name), 1)
        for name in ("weight_decay", "max_grad_norm", "evals_per_epoch", "save_steps", "early_stopping_patience"):
            at_least(f"training.{name}", getattr(self, name), 0)
        at_least("training.learning_rate", self.learning_rate, 0, exclusive=True)
        within("training.learning_rate", self.learning_rate, 0, 1)
        if self.seed is not None:
            within("training.seed", self.seed, 0, 2**32 - 1)
        within("training.warmup_ratio", self.warmup_ratio, 0, 1, below=True)
        at_least("training.divergence_factor", self.divergence_factor, 1, exclusive=True)
