"""Which models can be written as GGUF, and what llama.cpp calls their settings and weights."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorahydra.errors import ModelError

if TYPE_CHECKING:
    import torch
    from gguf import GGUFWriter

__all__ = ["GgufArchitecture", "add_settings", "gguf_architecture", "rope_factors"]

logger = logging.getLogger(__name__)

NAMES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""llama.cpp's architecture of each type of model of transformers."""
PAIRED = ("q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias")
"""Weights whose rows llama.cpp expects in another order, in the architecture `llama`."""


@dataclass(frozen=True)
class GgufArchitecture:
    """A model's architecture as llama.cpp knows it."""

    name: str
    heads: int
    key_heads: int
    tensor_name: Callable[[str], str | None]
    """llama.cpp's name of a tensor of transformers, which ends in `.weight` or `.bias`; None if it has none."""

    def rows(self, name: str, weights: torch.Tensor) -> torch.Tensor:
        """Weights with their rows (outputs) in llama.cpp's order.

        Rotary embeddings turn pairs of rows. Transformers pairs row `i` of a head with row `i + d/2`; llama.cpp's
        architecture `llama` pairs neighbours, as the original weights of Llama did.

        Args:
            name: The name in transformers.
            weights: Shape (outputs, …); also the factor `b` of an adapter, because only rows move.
        """
        if self.name != "llama" or not name.endswith(PAIRED):
            return weights
        heads = self.heads if ".q_proj." in name else self.key_heads
        halves = weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
        return halves.transpose(1, 2).reshape(weights.shape)


def gguf_architecture(config: Any) -> GgufArchitecture:
    """The architecture of a model with this configuration of transformers.

    Raises:
        ModelError: It cannot be written as GGUF here.
    """
    import gguf

    name = NAMES.get(config.model_type)
    if name is None:
        raise ModelError(
            f"models of type {config.model_type} cannot be exported as GGUF, only {', '.join(NAMES)}: export with "
            "--merged alone, and convert the folder with llama.cpp's convert_hf_to_gguf.py"
        )
    _check_settings(config)
    names = gguf.get_tensor_name_map(
        {label: key for key, label in gguf.MODEL_ARCH_NAMES.items()}[name], config.num_hidden_layers
    )
    key_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return GgufArchitecture(
        name,
        config.num_attention_heads,
        key_heads,
        lambda tensor: names.get_name(tensor, try_suffixes=(".weight", ".bias")),
    )


def add_settings(writer: GGUFWriter, config: Any) -> None:
    """Write the sizes and constants of a model."""
    import gguf

    width = _head_width(config)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    rope = config.rope_parameters
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    kind = rope.get("rope_type", "default")
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    elif kind == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(float(rope["factor"]))
        before = rope.get("original_max_position_embeddings") or config.max_position_embeddings
        writer.add_rope_scaling_orig_ctx_len(before)


def rope_factors(config: Any) -> list[float] | None:
    """What divides each rotary frequency of Llama 3.1 and later; None for other models.

    Short wavelengths stay, long ones are stretched by `factor`, and between them it changes gradually, as transformers
    computes it (`rope_type: llama3`).
    """
    rope = config.rope_parameters
    if rope.get("rope_type") != "llama3":
        return None
    width, factor = _head_width(config), rope["factor"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    window = rope["original_max_position_embeddings"]
    factors = []
    for place in range(0, width, 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (place / width)
        share = min(max((window / wavelength - low) / (high - low), 0.0), 1.0)
        factors.append(1 / ((1 - share) / factor + share))
    return factors


def _head_width(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _check_settings(config: Any) -> None:
    """Refuse what llama.cpp would compute differently."""
    rope = getattr(config, "rope_parameters", None) or {}
    kind = rope.get("rope_type", "default")
    if kind not in ("default", "linear", "yarn", "llama3") or "rope_theta" not in rope:
        raise ModelError(f"the model's rotary embeddings (rope_type={kind}) cannot be exported as GGUF")
    if rope.get("partial_rotary_factor", 1.0) != 1.0 or config.hidden_act != "silu":
        raise ModelError(
            f"a {config.model_type} model with hidden_act={config.hidden_act} and partial_rotary_factor="
            f"{rope.get('partial_rotary_factor', 1.0)} cannot be exported as GGUF: llama.cpp computes others only"
        )
    window = getattr(config, "sliding_window", None)
    if window and getattr(config, "use_sliding_window", True):
        logger.warning(
            "The model's attention looks back %d tokens, and llama.cpp's at all: longer conversations differ", window
        )
