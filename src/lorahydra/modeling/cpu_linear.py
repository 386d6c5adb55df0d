"""Quicker float32 matrix products for the frozen layers of a model on a CPU with AVX-512.

For float32, torch hands matrix products to Intel's MKL, which leaves AVX-512 unused on processors of other makers.
oneDNN, which torch ships too, uses it everywhere; `benchmarks/frozen_linear.py` measures the difference and
docs/performance.md has figures. Results differ from MKL's in the last bits only, and are the same from run to run.
"""

from __future__ import annotations

import functools
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lorahydra.modeling.compat import has_linear, linear

__all__ = ["frozen_linear", "is_supported", "use_onednn"]


@functools.cache
def is_supported() -> bool:
    """Whether this processor and build of torch have what `frozen_linear` needs to be quicker."""
    return torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512" and has_linear()


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


def frozen_linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`functional.linear` with no gradient for `weight` and `bias`.

    Args:
        inputs: Shape `(…, in_features)`.
        weight: Shape `(out_features, in_features)`; may be a transposed view.
        bias: Shape `(out_features,)`.
    """
    fits = inputs.dtype == weight.dtype == torch.float32 and inputs.device.type == "cpu" and inputs.numel() > 0
    if not (fits and is_supported()):
        return functional.linear(inputs, weight.detach(), None if bias is None else bias.detach())
    result: Tensor = _FrozenLinear.apply(inputs, weight, bias)  # type: ignore[no-untyped-call]
    return result


def _forward(module: nn.Linear, inputs: Tensor) -> Tensor:
    trainable = module.weight.requires_grad or (module.bias is not None and module.bias.requires_grad)
    if trainable:
        return functional.linear(inputs, module.weight, module.bias)
    return frozen_linear(inputs, module.weight, module.bias)


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return linear(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return linear(grad_outputs[0].contiguous(), weight.t(), None), None, None
