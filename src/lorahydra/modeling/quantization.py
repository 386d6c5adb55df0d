"""Base models whose linear layers have 4-bit or 8-bit weights (QLoRA, arXiv 2305.14314), with bitsandbytes.

Such a layer multiplies in the dtype of its inputs with weights that are dequantised for each product, so results do
not depend on what else is in the batch. bitsandbytes itself would round inputs too, with 8-bit weights, and on some
CPUs changes 4-bit weights to a form without gradients when the model is first evaluated.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from lorahydra.config.schema import ModelConfig
from lorahydra.errors import ConfigError, library_errors, reason
from lorahydra.modeling.compat import drop_one_way_conversions
from lorahydra.modeling.cpu_linear import frozen_linear
from lorahydra.modeling.huggingface import errors_only

__all__ = ["check_quantization", "dequantize", "quantization_config", "use_dequantized_products"]


def _import_bitsandbytes() -> Any:
    """Import bitsandbytes, without what it would do meanwhile.

    On some CPUs it fetches a kernel from the hub, or warns that it cannot. It also loads torch's compiler, which takes
    a second, for functions that are not used here. PEFT imports it wherever it is installed, so this has to be first.
    """
    compiler, hub_kernels = torch.compile, sys.modules.get("kernels")
    torch.compile = _not_compiled  # type: ignore[assignment]
    sys.modules["kernels"] = None  # type: ignore[assignment]  # so that it cannot be imported
    try:
        with errors_only("bitsandbytes"):
            import bitsandbytes
        return bitsandbytes
    finally:
        torch.compile = compiler
        del sys.modules["kernels"]
        if hub_kernels is not None:
            sys.modules["kernels"] = hub_kernels


def _not_compiled(function: Callable[..., Any], **_: Any) -> Callable[..., Any]:
    return function


bnb: Any
try:
    bnb = _import_bitsandbytes()
except Exception:  # not installed, or something that it needs is not
    bnb = None


def check_quantization(config: ModelConfig, device: torch.device) -> None:
    """Check that this machine can quantise as `model.quantization` asks.

    Raises:
        ConfigError: It cannot.
    """
    if config.quantization is None:
        return
    what = f"model.quantization={config.quantization}"

    def missing(error: Exception) -> ConfigError:
        return ConfigError(f"{what} needs bitsandbytes: pip install 'lorahydra[quantized]' ({reason(error)})")

    with library_errors(missing):
        _import_bitsandbytes()
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"{what} needs a CUDA GPU or the CPU: set model.device=cpu, or leave it out")


def quantization_config(quantization: str, dtype: torch.dtype) -> Any:
    """The settings with which transformers quantises a model while it reads the weights.

    The output head and the embeddings stay as they are.
    """
    from transformers import BitsAndBytesConfig

    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def use_dequantized_products(model: nn.Module) -> None:
    """Let the quantised layers of `model` multiply with dequantised weights.

    On a GPU, 4-bit layers keep bitsandbytes' own products, which do the same in fewer kernels.
    """
    for module in _quantized_layers(model).values():
        if isinstance(module, bnb.nn.Linear8bitLt):
            if module.weight.CB is not None:
                module.init_8bit_state()
        elif module.weight.is_cuda:
            continue
        # On the instance, as its class is what PEFT looks for.
        module.forward = MethodType(_forward, module)


def dequantize(model: Any, dtype: torch.dtype) -> None:
    """Replace the quantised layers of a model of transformers by ordinary ones, with the same weights in `dtype`."""
    from transformers.pytorch_utils import Conv1D

    layers = _quantized_layers(model)
    for name, module in layers.items():
        weight = _dequantized(module, dtype)
        outputs, inputs = weight.shape
        plain: Any = nn.Linear(inputs, outputs, bias=False, device="meta")
        if getattr(module, "source_cls", nn.Linear) is Conv1D:  # whose weights are transposed
            plain, weight = Conv1D(outputs, inputs), weight.t().contiguous()
        plain.weight = nn.Parameter(weight, requires_grad=False)
        plain.bias = module.bias
        model.set_submodule(name, plain)
    if layers:
        model.hf_quantizer.remove_quantization_config(model)
        drop_one_way_conversions(model)
        # PEFT looks at these.
        model.is_loaded_in_4bit = model.is_loaded_in_8bit = False


def _quantized_layers(model: nn.Module) -> dict[str, Any]:
    if bnb is None:
        return {}
    kinds = (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def _dequantized(module: Any, dtype: torch.dtype) -> Tensor:
    """The weights of a quantised layer, shape `(out_features, in_features)`."""
    weight: Tensor
    if isinstance(module, bnb.nn.Linear4bit):
        state = module.weight.quant_state
        if state.dtype != dtype:
            state = copy.copy(state)
            state.dtype = dtype
        weight = bnb.functional.dequantize_4bit(module.weight, state)
        return weight
    weight = module.state.CB.to(dtype)
    return weight.mul_(module.state.SCB.unsqueeze(1) / 127)


def _forward(module: Any, inputs: Tensor) -> Tensor:
    result: Tensor = _DequantizingLinear.apply(inputs, module)  # type: ignore[no-untyped-call]
    return result


class _DequantizingLinear(torch.autograd.Function):
    """A frozen linear layer that dequantises its weights in both passes, so that they are not kept in between."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, module: Any) -> Tensor:
        ctx.module = module
        return frozen_linear(inputs, _dequantized(module, inputs.dtype), module.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = gradients[0].contiguous()
        return frozen_linear(gradient, _dequantized(ctx.module, gradient.dtype).t()), None
