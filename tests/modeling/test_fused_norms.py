"""Norms that are computed with one kernel give what they gave before."""

from __future__ import annotations

import pytest
import torch
from tests.support.models import SMALL_SIZES
from transformers import AutoModelForCausalLM, GemmaConfig, LlamaConfig, PreTrainedConfig, Qwen3Config

from lorahydra.modeling.fused_norms import fuse_norms


@pytest.mark.parametrize(
    ("config", "norms"),
    # Qwen3 has two norms more in each layer; Gemma adds one to the weights, which the kernel does not.
    [(LlamaConfig(**SMALL_SIZES), 5), (Qwen3Config(**SMALL_SIZES), 9), (GemmaConfig(**SMALL_SIZES), 0)],
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
