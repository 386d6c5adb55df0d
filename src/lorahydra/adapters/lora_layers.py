"""The layers of an adapter as products of two matrices, which is all that other programs know of LoRA."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorahydra.errors import ModelError
from lorahydra.modeling.peft_format import changes_base, check_adapter
from lorahydra.names import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE

if TYPE_CHECKING:
    import torch

__all__ = ["LoraLayer", "read_layers"]

WEIGHT = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<factor>[AB])\.weight")
REFUSED = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "alora_invocation_tokens": "activated LoRA",
    "modules_to_save": "whole modules that were trained (modules_to_save)",
    "trainable_token_indices": "trained embeddings of single tokens (trainable_token_indices)",
    "layer_replication": "replicated layers (layer_replication)",
    "target_parameters": "adapted parameters outside linear layers (target_parameters)",
    "lora_bias": "a bias in its layers (lora_bias)",
    "use_bdlora": "BD-LoRA",
    "arrow_config": "Arrow",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
}
"""Fields of PEFT's configuration that change what an adapter computes."""


@dataclass(frozen=True)
class LoraLayer:
    """One adapted layer: it adds `scale · b @ a` to its base weights."""

    module: str
    """Name in the base model, such as `model.layers.0.self_attn.q_proj`."""
    a: torch.Tensor
    """Shape (rank, inputs)."""
    b: torch.Tensor
    """Shape (outputs, rank)."""
    scale: float

    @property
    def rank(self) -> int:
        """The inner dimension of the product."""
        return int(self.a.shape[0])


def read_layers(folder: Path, program: str) -> list[LoraLayer]:
    """The layers of the adapter in a folder, by name.

    Args:
        folder: The adapter, in PEFT's format.
        program: The program that the layers are for, for messages.

    Raises:
        ModelError: The adapter is more than products of two matrices, so `program` cannot load it.
    """
    from safetensors.torch import load_file

    check_adapter(folder)
    settings = json.loads((folder / ADAPTER_CONFIG_FILE).read_text("utf-8"))
    for field, what in REFUSED.items():
        if settings.get(field):
            raise _refused(program, what)
    if settings.get("bias", "none") != "none":
        raise _refused(program, f"trained biases (bias={settings['bias']})")
    if changes_base(init := settings.get("init_lora_weights")):
        raise _refused(program, f"a base model with changed weights (init_lora_weights={init})")
    factors: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in load_file(folder / ADAPTER_WEIGHTS_FILE).items():
        parts = WEIGHT.fullmatch(name)
        if parts is None:
            raise _refused(program, f"the tensor {name}")
        factors.setdefault(parts["module"], {})[parts["factor"]] = value
    if not factors:
        raise ModelError(f"the adapter in {folder} has no weights")
    return [_layer(folder, module, pair, settings) for module, pair in sorted(factors.items())]


def _layer(folder: Path, module: str, pair: Mapping[str, torch.Tensor], settings: Mapping[str, Any]) -> LoraLayer:
    a, b = pair.get("A"), pair.get("B")
    if a is None or b is None or a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        raise ModelError(f"the adapter in {folder} is damaged: the two factors of {module} do not fit each other")
    rank = int(a.shape[0])
    alpha = _alpha(module, settings)
    return LoraLayer(module, a, b, alpha / (rank**0.5 if settings.get("use_rslora") else rank))


def _alpha(module: str, settings: Mapping[str, Any]) -> float:
    """PEFT's `lora_alpha` of a module, which `alpha_pattern` may state for some of them."""
    from peft.utils.other import get_pattern_key

    pattern = settings.get("alpha_pattern") or {}
    return float(pattern.get(get_pattern_key(list(pattern), module), settings["lora_alpha"]))


def _refused(program: str, what: str) -> ModelError:
    return ModelError(f"the adapter has {what}, which {program} cannot load as an adapter: add --merged")
