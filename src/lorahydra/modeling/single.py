"""An adapter that cannot be packed, trained alone with PEFT's own layers, in the form of a pack of one."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import peft
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lorahydra.config.schema import LoraConfig
from lorahydra.modeling.base import BaseModel
from lorahydra.modeling.lora import adapter, save_adapter, seeded
from lorahydra.modeling.packing import NewAdapter, Pack, new_adapter, norms_of, packed
from lorahydra.modeling.peft_format import changes_base

__all__ = ["OnlyAloneError", "SingleAdapter", "attached", "own_dropout"]

logger = logging.getLogger(__name__)

CHOOSES_LAYERS = {"exclude_modules", "layers_to_transform", "layers_pattern"}
"""Fields of `lora.extra` that only decide which layers an adapter has."""


class OnlyAloneError(ValueError):
    """One of several adapters can only be trained alone."""


class SingleAdapter:
    """The weights of one adapter in PEFT's layers; `Pack` documents each member.

    Args:
        model: With the adapter attached.
    """

    slots = 1
    generator = None

    def __init__(self, model: peft.PeftModel) -> None:
        self._model = model
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.weights = torch.cat([parameter.detach().flatten() for parameter in self._parameters]).unsqueeze(0)
        for parameter, part in zip(self._parameters, self.matrices(self.weights, 0), strict=True):
            parameter.data = part

    @property
    def names(self) -> list[str]:
        """Names of the parameters."""
        return [name for name, parameter in self._model.named_parameters() if parameter.requires_grad]

    def at(self, step: int, part: int) -> None:
        """Dropout goes on from torch's own random state."""

    def recomputes(self) -> None:
        """Checkpointing puts torch's random state back by itself."""

    def refresh(self) -> None:
        """The layers multiply with `weights` themselves."""

    def keep(self, slots: Sequence[int]) -> None:
        """Does nothing: there are no other adapters to drop."""

    def take_gradients(self) -> Tensor:
        """Shape `(1, size)`."""
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
        for parameter in self._parameters:
            parameter.grad = None
        return torch.cat([gradient.flatten() for gradient in gradients]).unsqueeze(0)

    def matrices(self, rows: Tensor, slot: int) -> list[Tensor]:
        """Views in the shapes of the parameters."""
        parts = rows[slot].split([parameter.numel() for parameter in self._parameters])
        return [part.view(p.shape) for p, part in zip(self._parameters, parts, strict=True)]

    def norms(self, gradients: Tensor) -> Tensor:
        """Shape `(1,)`."""
        return norms_of(gradients, [parameter.numel() for parameter in self._parameters])

    def save(self, slot: int, folder: Path) -> None:
        """Write the adapter in PEFT's format."""
        save_adapter(self._model, folder)


@contextmanager
def attached(base: BaseModel, settings: Sequence[LoraConfig], seed: int) -> Iterator[Pack | SingleAdapter]:
    """Attach new adapters in training mode, side by side, and remove them when the block ends, even by an exception.

    Raises:
        ModelError: Settings do not fit the base model.
        OnlyAloneError: One of several adapters can only be trained alone.
        ValueError: The adapters are on different layers.
    """
    reason = next(filter(None, (_reason(base, lora) for lora in settings)), None)
    starts = [] if reason else _new_adapters(base, settings, seed)
    reason = reason or _unusual_layer(base, starts)
    if reason is None:
        with packed(base, starts, seed) as pack:
            yield pack
        return
    if len(settings) > 1:
        raise OnlyAloneError(f"{reason}: such an adapter can only be trained alone")
    logger.info("%s: the adapter is trained with PEFT's own layers, which can only be done alone", reason)
    with adapter(base, settings[0], seed) as model, seeded(seed, base.device):
        yield SingleAdapter(model)


def _new_adapters(base: BaseModel, settings: Sequence[LoraConfig], seed: int) -> list[NewAdapter]:
    """New adapters; those that begin with the same weights are initialised once, which takes most of a second."""
    made: dict[str, NewAdapter] = {}
    starts = []
    for lora in settings:
        # Scale and dropout do not affect the initial weights.
        key = repr(dataclasses.replace(lora, lora_alpha=1, lora_dropout=0.0, use_rslora=False, plus_ratio=1.0))
        if key not in made:
            made[key] = new_adapter(base, lora, seed)
        config = copy.deepcopy(made[key].config)
        config.lora_alpha, config.lora_dropout, config.use_rslora = lora.lora_alpha, lora.lora_dropout, lora.use_rslora
        starts.append(NewAdapter(config, made[key].weights))
    return starts


def _reason(base: BaseModel, lora: LoraConfig) -> str | None:
    """The reason why an adapter cannot be packed, from its settings and the base model."""
    if unusual := sorted(lora.extra.keys() - CHOOSES_LAYERS):
        return f"lora.extra.{unusual[0]} may change how a layer computes"
    if lora.use_dora:
        return "lora.use_dora=true changes how a layer computes"
    if changes_base(lora.init_lora_weights):
        return f"lora.init_lora_weights={lora.init_lora_weights} changes the base model's weights"
    dropout = own_dropout(base)
    return None if dropout is None else f"the base model has dropout of its own ({dropout})"


def own_dropout(base: BaseModel) -> str | None:
    """The base model's setting for dropout in training, as `name=value`; None without any."""
    settings = vars(base.model.config.get_text_config(decoder=True))
    unused = ("classifier", "summary")
    for name, value in settings.items():
        if "drop" in name and not name.startswith(unused) and isinstance(value, float) and value > 0:
            return f"{name}={value}"
    return None


def _unusual_layer(base: BaseModel, starts: Sequence[NewAdapter]) -> str | None:
    """A layer that is not a plain matrix product."""
    for start in starts:
        if len(start.weights) != 2 * len(start.layers):
            return "lora.target_modules names layers that are not linear"
        for layer in start.layers:
            module: nn.Module = base.model.get_submodule(layer)
            if not isinstance(module, nn.Linear | Conv1D):
                return f"{layer} is a {type(module).__name__}"
    return None
