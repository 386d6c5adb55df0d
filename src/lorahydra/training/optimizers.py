"""The optimisers, by the names of `transformers.TrainingArguments` or their own: torch's and those of bitsandbytes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers.optimization import Adafactor

from lorahydra.config.checks import only_keys
from lorahydra.config.schema import TrainingConfig
from lorahydra.errors import ConfigError, library_errors, reason

__all__ = ["is_elementwise", "make_optimizer"]

OF_TORCH: dict[str, type[torch.optim.Optimizer]] = {
    "adamw_torch": torch.optim.AdamW,
    "adamw_torch_fused": torch.optim.AdamW,
    "adafactor": Adafactor,
} | {
    kind.__name__.lower(): kind
    for kind in (
        *(torch.optim.Adadelta, torch.optim.Adagrad, torch.optim.Adam, torch.optim.Adamax, torch.optim.AdamW),
        *(torch.optim.Muon, torch.optim.NAdam, torch.optim.RAdam, torch.optim.RMSprop, torch.optim.SGD),
    )
}
OF_BITSANDBYTES = {"adamw": "AdamW", "ademamix": "AdEMAMix", "lion": "Lion", "rmsprop": "RMSprop"}
"""Classes by the beginning of a name such as `paged_adamw_8bit`, without `paged_`."""
OWN_ARGUMENTS = {
    *("params", "lr", "weight_decay", "fused", "foreach", "capturable", "differentiable", "maximize"),
    *("optim_bits", "is_paged", "args"),
}
"""Arguments of optimisers that are not in `training.extra`."""


def is_elementwise(name: str) -> bool:
    """Whether each number of an adapter is changed by itself, so that all matrices may be given as one row."""
    return name not in ("adafactor", "muon") and not name.endswith("_8bit")


def make_optimizer(groups: Sequence[dict[str, Any]], config: TrainingConfig) -> torch.optim.Optimizer:
    """The optimiser, with its library's defaults except for the rate, the weight decay and `training.extra`.

    Args:
        groups: Parameter groups, as torch's optimisers take them. The parameters have no gaps.
        config: Its name, rate and further arguments.

    Raises:
        ConfigError: Its library is not installed, or it does not take a further argument, its value or a parameter.
    """
    on_gpu = groups[0]["params"][0].is_cuda
    settings: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    chosen: Callable[..., torch.optim.Optimizer]
    if config.optim in OF_TORCH:
        chosen = OF_TORCH[config.optim]
    else:
        chosen = _of_bitsandbytes(config.optim)
        settings["optim_bits"] = 8 if config.optim.endswith("_8bit") else 32
        if config.optim.startswith("paged_"):
            # On a CPU there is nothing to page out to, and bitsandbytes warns.
            settings["is_paged"] = on_gpu
    if chosen is Adafactor:
        settings |= {"scale_parameter": False, "relative_step": False}
    elif chosen is torch.optim.AdamW:
        # On a GPU, one kernel instead of a dozen.
        settings["fused"] = on_gpu or config.optim == "adamw_torch_fused"
    only_keys("training.extra", config.extra, inspect.signature(chosen).parameters.keys() - OWN_ARGUMENTS)
    settings |= {name: tuple(v) if isinstance(v, list) else v for name, v in config.extra.items()}
    with library_errors(lambda error: _refused(config, error)):
        return chosen(groups, **settings)


def _of_bitsandbytes(name: str) -> Callable[..., torch.optim.Optimizer]:
    with library_errors(
        lambda error: ConfigError(
            f"training.optim={name} needs bitsandbytes ({reason(error)}): pip install 'lorahydra[quantized]'"
        )
    ):
        from bitsandbytes import optim

        made: Callable[..., torch.optim.Optimizer] = getattr(
            optim, OF_BITSANDBYTES[name.removeprefix("paged_").partition("_")[0]]
        )
        return made


def _refused(config: TrainingConfig, error: Exception) -> ConfigError:
    extra = f" with training.extra={config.extra}" if config.extra else ""
    return ConfigError(f"training.optim={config.optim}{extra} is not allowed: {reason(error)}")
