"""Gated layers that keep less give the same values and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.support.models import SMALL_SIZES
from torch import Tensor, nn
from torch.nn import functional
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


class Gated(nn.Module):
    def __init__(self, gates: int = 12, dropout: float = 0.0) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = nn.Linear(8, gates), nn.Linear(8, 12), nn.Linear(12, 8)
        self.dropout = nn.Dropout(dropout)
        self.eval()

    def forward(self, inputs: Tensor) -> Any:
        return self.dropout(self.down_proj(functional.silu(self.gate_proj(inputs)) * self.up_proj(inputs)))


class Routed(Gated):
    def forward(self, inputs: Tensor) -> Any:
        return super().forward(inputs), None


class Unshaped(Gated):
    def forward(self, inputs: Tensor) -> Any:
        (_,) = inputs.shape
        return super().forward(inputs)


def test_modules_that_compute_something_else_stay_as_they_are() -> None:
    others = [Gated(dropout=0.1), Gated(gates=1), Routed(), Unshaped()]
    zero = Gated()
    for layer in (zero.down_proj.weight, zero.down_proj.bias):
        nn.init.zeros_(layer)  # with which nothing is known of the activation
    assert use_fused_mlps(nn.ModuleList([Gated(), *others, zero])) == 1


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
