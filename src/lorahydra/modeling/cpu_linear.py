"""Quicker float32 matrix products for the frozen layers of a model on a CPU with AVX-512.

For float32, torch hands matrix products to Intel's MKL, which leaves AVX-512 unused on processors of other makers.
oneDNN, which torch ships too, uses it everywhere; `benchmarks/frozen_linear.py` measures the difference and
docs/performance.md has figures. Results differ from MKL's in the last bits only, and are the same from run to run.

Processors with instructions for bfloat16 are about twice as quick again with factors that are rounded to it, see
`rounded_weights`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lorahydra.modeling.compat import has_linear, linear

__all__ = ["frozen_linear", "frozen_weight", "is_supported", "multiplies_bfloat16", "rounded_weights", "use_onednn"]

ROUNDED = "weight_in_bfloat16"
"""Attribute of a layer with a copy of its weight, which it multiplies with."""


@functools.cache
def is_supported() -> bool:
    """Whether this processor and build of torch have what `frozen_linear` needs to be quicker."""
    return torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512" and has_linear()


@functools.cache
def multiplies_bfloat16() -> bool:
    """Whether this processor has instructions that multiply in bfloat16 and add in float32, for `frozen_linear`."""
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return is_supported() and bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def use_onednn(model: nn.Module) -> None:
    """Let the linear layers of `model` compute with oneDNN as long as their weights are frozen.

    Does nothing if that is not supported. Layers keep their class, and weights their layout.
    """
    if not is_supported():
        return
    for module in model.modules():
        if type(module) is nn.Linear:
            # On the instance: adapters wrap the layer as it is, and its class stays what libraries look for.
            module.forward = MethodType(_forward, module)  # type: ignore[method-assign]


@contextmanager
def rounded_weights(model: nn.Module) -> Iterator[None]:
    """Let the frozen float32 layers of `model` multiply in bfloat16 and add in float32 while the block runs.

    Only for a model that `use_onednn` has prepared, and only in training mode: what is measured in evaluation mode is
    that of the weights as they are. The layers keep their weights, and get copies rounded to bfloat16.
    """
    layers = [m for m in model.modules() if type(m) is nn.Linear and _is_frozen(m) and m.weight.dtype == torch.float32]
    try:
        for layer in layers:
            # Not a buffer: it belongs neither to the state of the model nor to its memory on the disk.
            setattr(layer, ROUNDED, layer.weight.detach().to(torch.bfloat16))
        yield
    finally:
        for layer in layers:
            vars(layer).pop(ROUNDED, None)


def frozen_weight(layer: nn.Module) -> Tensor:
    """What a frozen linear layer multiplies with: its weight, or in training the copy that `rounded_weights` makes."""
    rounded: Tensor | None = vars(layer).get(ROUNDED) if layer.training else None
    return layer.get_parameter("weight") if rounded is None else rounded


def frozen_linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`functional.linear` with no gradient for `weight` and `bias`.

    float32 inputs on a CPU with a weight in bfloat16 are rounded to it for the product; the result is float32.

    Args:
        inputs: Shape `(…, in_features)`.
        weight: Shape `(out_features, in_features)`; may be a transposed view.
        bias: Shape `(out_features,)`, in the dtype of `inputs`.
    """
    rounded = inputs.dtype == torch.float32 and weight.dtype == torch.bfloat16
    fits = (inputs.dtype == weight.dtype == torch.float32) or rounded
    if fits and inputs.device.type == "cpu" and inputs.numel() > 0 and is_supported():
        result: Tensor = _FrozenLinear.apply(inputs, weight, bias)  # type: ignore[no-untyped-call]
        return result
    return functional.linear(inputs, weight.detach().to(inputs.dtype), None if bias is None else bias.detach())


def _forward(module: nn.Linear, inputs: Tensor) -> Tensor:
    if not _is_frozen(module):
        return functional.linear(inputs, module.weight, module.bias)
    return frozen_linear(inputs, frozen_weight(module), module.bias)


def _is_frozen(layer: nn.Linear) -> bool:
    return not (layer.weight.requires_grad or (layer.bias is not None and layer.bias.requires_grad))


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return _product(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return _product(grad_outputs[0].contiguous(), weight.t(), None), None, None


def _product(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """In float32, by factors in the dtype of `weight`."""
    if weight.dtype == inputs.dtype:
        return linear(inputs, weight, bias)
    product = linear(inputs.to(weight.dtype), weight, None).to(inputs.dtype)
    return product if bias is None else product.add_(bias)
