"""Which modules of a base model get an adapter; checked before anything is changed."""

from __future__ import annotations

import re

import torch

from lorahydra.config.schema import LoraConfig
from lorahydra.errors import ModelError
from lorahydra.modeling.base import BaseModel

__all__ = ["check_targets"]

NAMES_SHOWN = 12
"""Largest number of module names in an error message."""


def check_targets(base: BaseModel, config: LoraConfig) -> None:
    """Check that `config` fits the layers of `base`.

    PEFT itself ignores names of a list that match nothing, and gives an obscure error if a layer is too small for
    PiSSA.
    """
    targets = config.target_modules
    if targets == "all-linear":
        matched = _linear_layers(base.model)
    elif isinstance(targets, str):
        matched = _matching(base, targets)
    else:
        matched = {}
        for name in targets:
            matched |= _matching(base, rf"(.*\.)?{re.escape(name)}", shown=name)
    init = config.init_lora_weights
    if isinstance(init, str) and init != "gaussian":
        _check_full_precision(base, init, matched)
    if isinstance(init, str) and init.startswith("pissa"):
        _check_pissa(base, config.r, matched)


def _matching(base: BaseModel, pattern: str, *, shown: str | None = None) -> dict[str, torch.nn.Module]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ModelError(
            f"lora.target_modules={pattern} is not a regular expression ({error}); for one module name write "
            f"lora.target_modules=[NAME], for all layers all-linear"
        ) from error
    matching = {name: module for name, module in base.model.named_modules() if expression.fullmatch(name)}
    if not matching:
        names = sorted({name.rpartition(".")[2] for name in _linear_layers(base.model)})
        raise ModelError(
            f"lora.target_modules: {shown or pattern} matches no module of {base.source}; it has "
            f"{', '.join(names[:NAMES_SHOWN])}{', …' if len(names) > NAMES_SHOWN else ''}"
        )
    return matching


def _linear_layers(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """What `all-linear` means to PEFT: every linear layer but the output head."""
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()  # type: ignore[operator]
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head
    }


def _check_full_precision(base: BaseModel, init: str, layers: dict[str, torch.nn.Module]) -> None:
    """Refuse initialisations that PEFT cannot make on a checkpoint that was saved quantised."""
    for layer in layers.values():
        weight = getattr(layer, "weight", None)
        if isinstance(weight, torch.Tensor) and not weight.is_floating_point():
            raise ModelError(
                f"lora.init_lora_weights={init} needs a base model in full precision, and {base.source} is quantised: "
                "choose another value"
            )


def _check_pissa(base: BaseModel, r: int, layers: dict[str, torch.nn.Module]) -> None:
    embedding = base.model.get_input_embeddings().weight
    for name, layer in layers.items():
        weight = getattr(layer, "weight", None)
        if not isinstance(weight, torch.Tensor):
            continue
        if min(weight.shape) < r:
            raise ModelError(
                f"lora.r={r} is too large for PiSSA: {name} of {base.source} has rank {min(weight.shape)} at "
                f"most; lower lora.r or leave the layer out of lora.target_modules"
            )
        if weight is embedding:
            raise ModelError(
                f"PiSSA cannot change {name} of {base.source}: its weights are also the input embeddings; "
                "leave it out of lora.target_modules"
            )
