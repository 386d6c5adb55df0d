"""What lorahydra relies on in torch and transformers beyond their public API."""

from __future__ import annotations

import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from lorahydra.modeling.compat import attention_of, is_view, linear, takes_dynamic_cache, tensor_norms


def test_a_model_says_which_attention_and_cache_it_has() -> None:
    small = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    model = LlamaForCausalLM(small)
    model.set_attn_implementation("eager")
    assert attention_of(model) == "eager"
    assert takes_dynamic_cache(model)


def test_norms_are_those_of_clipping() -> None:
    tensors = [torch.randn(3, 4), torch.randn(5)]
    for tensor, norm in zip(tensors, tensor_norms(tensors), strict=True):
        tensor.grad = tensor.clone()
        assert torch.equal(norm, torch.nn.utils.clip_grad_norm_([tensor], 1e9))


def test_a_view_is_told() -> None:
    tensor = torch.zeros(2, 2)
    assert is_view(tensor[0])
    assert not is_view(tensor)


def test_the_linear_layer_takes_weights_in_any_strides() -> None:
    inputs, weight, bias = torch.randn(3, 4), torch.randn(4, 5).t(), torch.randn(5)
    for some in (bias, None):
        assert torch.allclose(linear(inputs, weight, some), functional.linear(inputs, weight, some), atol=1e-6)
