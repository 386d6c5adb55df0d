"""The completion loss equals the plain one, in value and gradient, for every kind of output head."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
    OPTConfig,
    PhiConfig,
    PreTrainedModel,
)

from lorahydra.modeling.cpu_linear import rounded_weights
from lorahydra.training import loss as loss_module
from lorahydra.training.loss import IGNORED, CompletionLoss

SIZES = {
    "vocab_size": 97,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
# A plain head, a tied one, soft-capped logits, scaled logits, a bias, and an architecture of its own.
CONFIGS = {
    "llama": LlamaConfig(**SIZES, intermediate_size=32, tie_word_embeddings=False),
    "llama-tied": LlamaConfig(**SIZES, intermediate_size=32, tie_word_embeddings=True),
    "gemma2": Gemma2Config(**SIZES, intermediate_size=32, head_dim=8, final_logit_softcapping=3.0),
    "granite": GraniteConfig(**SIZES, intermediate_size=32, logits_scaling=4.0),
    "phi": PhiConfig(**SIZES, intermediate_size=32),
    "opt": OPTConfig(
        vocab_size=97, hidden_size=16, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2, word_embed_proj_dim=16
    ),
}
FUSED = {"llama", "llama-tied", "opt"}


def model_of(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
    model.requires_grad_(False)
    return model


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(3, 97, (3, 12), generator=torch.Generator().manual_seed(1))
    labels = torch.full_like(ids, IGNORED)
    labels[0, 5:9] = ids[0, 5:9]
    labels[1, 1:] = ids[1, 1:]
    labels[2, 3] = ids[2, 3]
    labels[2, 7:] = ids[2, 7:]  # two assistant turns
    return ids, labels


def plain_loss(model: PreTrainedModel, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float()
    return functional.cross_entropy(logits[:, :-1].reshape(-1, 97), labels[:, 1:].reshape(-1), reduction="sum")


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("chunk_bytes", [2**20, 4 * 97 * 5])
def test_value_and_gradient_equal_the_plain_loss(name: str, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "CHUNK_BYTES", chunk_bytes)
    model, (ids, labels) = model_of(name), batch()
    weight = next(p for n, p in model.named_parameters() if "layers.0" in n and p.dim() == 2)
    weight.requires_grad_(True)
    completion_loss = CompletionLoss(model)
    assert completion_loss.from_hidden == (name in FUSED)

    expected = plain_loss(model, ids, labels)
    [expected_grad] = torch.autograd.grad(expected, weight)
    [actual] = completion_loss(model, ids, labels)
    [actual_grad] = torch.autograd.grad(actual, weight)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(actual_grad, expected_grad, rtol=1e-4, atol=1e-6)


def test_rounded_weights_leave_the_loss_fused() -> None:
    model = model_of("llama").train()
    with rounded_weights(model):
        assert CompletionLoss(model).from_hidden
    assert model.training


def test_a_trainable_head_gets_its_gradient() -> None:
    model, (ids, labels) = model_of("llama"), batch()
    head = model.get_output_embeddings().weight
    head.requires_grad_(True)
    [expected] = torch.autograd.grad(plain_loss(model, ids, labels), head)
    [actual] = torch.autograd.grad(CompletionLoss(model)(model, ids, labels), head)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


def test_padding_on_the_right_changes_nothing() -> None:
    model, (ids, labels) = model_of("llama"), batch()
    padded = functional.pad(ids, (0, 5), value=0), functional.pad(labels, (0, 5), value=IGNORED)
    completion_loss = CompletionLoss(model)
    torch.testing.assert_close(completion_loss(model, *padded), completion_loss(model, ids, labels))


def test_the_model_is_left_without_hooks() -> None:
    model, (ids, labels) = model_of("llama"), batch()
    CompletionLoss(model)(model, ids, labels)
    assert not model.get_output_embeddings()._forward_pre_hooks
    assert model(input_ids=ids).logits.shape == (3, 12, 97)
