"""Gated layers that keep less give the same values and gradients."""

from __future__ import annotations

import pytest
import torch
from tests.support.models import SMALL_SIZES
from torch import Tensor
from transformers import AutoModelForCausalLM, GemmaConfig, LlamaConfig, PreTrainedConfig, PreTrainedModel, Qwen3Config

from lorahydra.modeling.fused_mlp import use_fused_mlps


@pytest.mark.parametrize(
    ("config", "layers"),
    # Gemma's activation is another one.
    [(LlamaConfig(**SMALL_SIZES), 2), (Qwen3Config(**SMALL_SIZES), 2), (GemmaConfig(**SMALL_SIZES), 0)],
    ids=["llama", "qwen3", "gemma"],
)
def test_a_model_computes_the_same_and_keeps_less(config: PreTrainedConfig, layers: int) -> None:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    before = passes(model)
    assert use_fused_mlps(model) == layers
    after = passes(model)
    assert torch.equal(after[0], before[0])
    assert torch.equal(after[1], before[1])
    assert before[2] - after[2] == layers * 20 * config.intermediate_size * 4


def passes(model: PreTrainedModel) -> tuple[Tensor, Tensor, int]:
    """Logits, the gradient of the embeddings, and the bytes that are kept in between, without the weights."""
    embeddings = model.get_input_embeddings()(torch.arange(20).view(2, 10)).requires_grad_()
    kept: dict[int, int] = {}
    weights = {parameter.data_ptr() for parameter in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(inputs_embeds=embeddings, use_cache=False).logits
    [gradient] = torch.autograd.grad(logits.square().sum(), embeddings)
    return logits.detach(), gradient, sum(kept.values())
