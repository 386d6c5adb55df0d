"""Merges an adapter into a copy of its base model: one folder that transformers loads without PEFT.

```python
merged = merge_adapter(origin.model, folder, torch.bfloat16)
save_merged(merged, target, chat_template=template)
```
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lorahydra.config.schema import ModelConfig
from lorahydra.errors import ModelError, reason
from lorahydra.modeling.base import BaseModel, load_copy
from lorahydra.modeling.generation import greedy_settings
from lorahydra.modeling.huggingface import disk_errors, no_progress_bars, save_tokenizer
from lorahydra.modeling.lora import attach_saved
from lorahydra.modeling.peft_format import check_adapter
from lorahydra.modeling.quantization import dequantize

if TYPE_CHECKING:
    from peft import PeftModel

__all__ = ["merge_adapter", "save_merged", "without_thinking"]

NO_THINKING = "{%- if enable_thinking is not defined -%}{%- set enable_thinking = false -%}{%- endif -%}"
"""Put before templates with a thinking mode, because adapters are trained and scored without it."""


def merge_adapter(config: ModelConfig, folder: Path, dtype: torch.dtype) -> BaseModel:
    """Load a copy of the base model, on the CPU, with the adapter in a folder merged into its weights.

    Products are added to the checkpoint's weights in float32 and rounded to `dtype` once, in which they must be finite.
    A quantised base model is dequantised to `dtype` first: these are the weights that the adapter was trained on.
    Base models that the process holds stay as they are.
    """
    check_adapter(folder)
    base = load_copy(config)
    dequantize(base.model, dtype)
    model = attach_saved(base, folder)
    _untie(model)
    try:
        with warnings.catch_warnings():
            # The layers have been merged on purpose.
            warnings.filterwarnings("ignore", "(All adapters are already|Already following adapters were) merged")
            _merge_layers(model, dtype)
            base.model = model.merge_and_unload(safe_merge=True).to(dtype)
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise ModelError(f"the adapter in {folder} cannot be merged into {base.source}: {reason(error)}") from error
    return base


def save_merged(merged: BaseModel, folder: Path, *, chat_template: str | None = None, ends: Iterable[int] = ()) -> None:
    """Write a merged model and its tokenizer to a folder that exists, for `from_pretrained`.

    Its generation settings are those that adapters are scored with: the most likely token at every step, ended by the
    tokens that end an answer in a trial.

    Args:
        merged: The result of `merge_adapter`.
        folder: The folder to write to.
        chat_template: Jinja text, set on the tokenizer; the tokenizer's own stays when None.
        ends: Tokens that end an answer in this template, beside those that the base model's generation settings name.
    """
    model, tokenizer = merged.model, merged.tokenizer
    model.generation_config = greedy_settings(model, tokenizer, ends)
    with disk_errors(), no_progress_bars():
        model.save_pretrained(folder)
    if chat_template is not None:
        tokenizer.chat_template = without_thinking(chat_template)
    save_tokenizer(tokenizer, folder)


def without_thinking(chat_template: str) -> str:
    """A chat template whose thinking mode, if it has one, is off unless it is asked for."""
    return (NO_THINKING if "enable_thinking" in chat_template else "") + chat_template


def _untie(model: PeftModel) -> None:
    """Give tuned layers separate weights: an output head often shares those of the embeddings."""
    tuned = _tuned_layers(model)
    owners: dict[int, int] = {}
    for module in model.modules():
        for _, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    for layer in tuned:
        inner = layer.get_base_layer()
        if owners.get(id(inner.weight), 0) > 1:
            inner.weight = torch.nn.Parameter(inner.weight.detach().clone(), requires_grad=False)
            model.config.get_text_config(decoder=True).tie_word_embeddings = False
            model.config.tie_word_embeddings = False


def _merge_layers(model: PeftModel, dtype: torch.dtype) -> None:
    for layer in _tuned_layers(model):
        inner = layer.get_base_layer()
        # One layer at a time: a whole large model in float32 needs twice its memory.
        inner.weight.data = inner.weight.data.float()
        layer.merge(safe_merge=True)
        inner.weight.data = inner.weight.data.to(dtype)
        if not bool(torch.isfinite(inner.weight).all()):
            raise ValueError(f"its weights are too large for {str(dtype).removeprefix('torch.')}: choose another dtype")


def _tuned_layers(model: PeftModel) -> list[Any]:
    """Layers with an adapter that have one weight; PEFT merges others as they are."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers: list[Any] = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    return [layer for layer in layers if isinstance(getattr(layer.get_base_layer(), "weight", None), torch.Tensor)]
