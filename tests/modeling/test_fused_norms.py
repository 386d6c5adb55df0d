"""Norms that are computed with one kernel give what they gave before."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, GemmaConfig, LlamaConfig, PreTrainedConfig, Qwen3Config

from lorahydra.modeling.fused_norms import fuse_norms

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
}


@pytest.mark.parametrize(
    ("config", "norms"),
    # Qwen3 has two norms more in each layer; Gemma adds one to the weights, which the kernel does not.
    [(LlamaConfig(**SIZES), 5), (Qwen3Config(**SIZES), 9), (GemmaConfig(**SIZES), 0)],
    ids=["llama", "qwen3", "gemma"],
)
def test_a_model_computes_the_same(config: PreTrainedConfig, norms: int) -> None:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(False)
        if "norm" in name:
            parameter.uniform_(0.5, 1.5)
    ids = torch.arange(20).view(2, 10)
    before = model(ids).logits
    assert fuse_norms(model) == norms
    torch.testing.assert_close(model(ids).logits, before, rtol=1e-4, atol=1e-5)
