"""The quicker product equals torch's own, in value and gradient, and leaves training of weights alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from lorahydra.modeling.cpu_linear import frozen_linear, is_supported, rounded_weights, use_onednn


@pytest.mark.parametrize("shape", [(7, 24), (2, 5, 24), (0, 24)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_value_and_gradient_equal_torchs(shape: tuple[int, ...], bias: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(24, 40, bias=bias, dtype=dtype).requires_grad_(False)
    inputs = torch.randn(shape, dtype=dtype, requires_grad=True)
    expected = functional.linear(inputs, layer.weight, layer.bias)
    actual = frozen_linear(inputs, layer.weight, layer.bias)
    torch.testing.assert_close(actual, expected)
    gradient = torch.randn_like(expected)
    [expected_grad] = torch.autograd.grad(expected, inputs, gradient)
    [actual_grad] = torch.autograd.grad(actual, inputs, gradient)
    torch.testing.assert_close(actual_grad, expected_grad)


def test_a_transposed_weight_needs_no_copy() -> None:
    weight, inputs = torch.randn(40, 24), torch.randn(5, 40)
    torch.testing.assert_close(frozen_linear(inputs, weight.t()), inputs @ weight)


def test_a_weight_that_is_trained_gets_its_gradient() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    use_onednn(model)
    model(torch.randn(3, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_copy_computes_with_its_own_weights() -> None:
    layer = nn.Linear(8, 4).requires_grad_(False)
    use_onednn(layer)
    other = copy.deepcopy(layer)
    other.weight.data.zero_()
    inputs = torch.ones(1, 8)
    assert torch.equal(other(inputs)[0], other.bias)
    assert not torch.equal(layer(inputs)[0], layer.bias)


@pytest.mark.skipif(not is_supported(), reason="this processor takes torch's own path")
def test_frozen_layers_take_the_quicker_path() -> None:
    layer = nn.Linear(8, 4).requires_grad_(False)
    use_onednn(layer)
    with torch.profiler.profile() as profile:
        layer(torch.randn(3, 8))
    assert "mkldnn::_linear_pointwise" in {event.key for event in profile.key_averages()}


@pytest.mark.skipif(not is_supported(), reason="this processor takes torch's own path")
def test_rounded_weights_change_products_a_little_and_nothing_else() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 40), nn.Linear(40, 8, bias=False)).requires_grad_(False).train()
    use_onednn(model)
    inputs = torch.randn(5, 24, requires_grad=True)
    before, state = model(inputs), copy.deepcopy(model.state_dict())
    [gradient] = torch.autograd.grad(before.sum(), inputs)
    with rounded_weights(model):
        rounded = model(inputs)
        [rounded_gradient] = torch.autograd.grad(rounded.sum(), inputs)
        assert model.state_dict().keys() == state.keys()
        assert torch.equal(model.eval()(inputs), before)
    assert rounded.dtype == rounded_gradient.dtype == torch.float32
    for actual, expected in ((rounded, before), (rounded_gradient, gradient)):
        assert not torch.equal(actual, expected)
        assert torch.linalg.vector_norm(actual - expected) < 0.01 * torch.linalg.vector_norm(expected)
    assert torch.equal(model(inputs), before)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_weights_that_are_trained_are_not_rounded() -> None:
    layer = nn.Linear(24, 40)
    use_onednn(layer)
    inputs = torch.randn(5, 24)
    before = layer(inputs)
    with rounded_weights(layer):
        assert torch.equal(layer(inputs), before)
