"""Parts of torch and transformers that are private, each with the reason why the public API is not enough.

No other module reads them. `tests/modeling/test_compat.py` tests what is relied on; `make upgrade-check` runs it with
the newest versions that pyproject.toml allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor
from transformers import PreTrainedModel

__all__ = [
    "attention_of",
    "computes_in_static_shapes",
    "drop_one_way_conversions",
    "end_failed_recording",
    "has_linear",
    "is_view",
    "linear",
    "takes_dynamic_cache",
    "tensor_norms",
]


def attention_of(model: PreTrainedModel) -> str:
    """The implementation of attention in use, such as `sdpa`; the public API can only set it."""
    return str(model.config._attn_implementation)


def takes_dynamic_cache(model: PreTrainedModel) -> bool:
    """Whether a model takes a `DynamicCache`; `generate` decides this too, but does not make it public."""
    return bool(model._supports_default_dynamic_cache())


def computes_in_static_shapes(model: PreTrainedModel) -> bool:
    """Whether transformers says that a model decodes with a cache of a fixed size, as its `generate` asks too."""
    return bool(getattr(model, "_can_compile_fullgraph", False))


def drop_one_way_conversions(model: PreTrainedModel) -> None:
    """Make a model that was read from quantised weights, and dequantised, one that can be saved.

    `save_pretrained` reverts what was done to the weights as they were read; nothing public changes that.
    """
    kept = []
    for conversion in getattr(model, "_weight_conversions", None) or []:
        with suppress(NotImplementedError):
            conversion.reverse_transform()
            kept.append(conversion)
    model._weight_conversions = kept or None


def tensor_norms(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The Euclidean norm of each tensor, as `torch.nn.utils.clip_grad_norm_` computes it, bit for bit."""
    return list(torch._foreach_norm(list(tensors)))


def is_view(tensor: Tensor) -> bool:
    """Whether a tensor is a view, into which an autograd function cannot write; torch only has private names for it."""
    return bool(tensor._is_view())


def has_linear() -> bool:
    """Whether this build of torch has `linear`."""
    return hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`inputs · weightᵀ + bias` on a CPU with weights in any strides, without a copy that `functional.linear` makes.

    The operator behind the linear layers of `torch.compile`; nothing public calls it without compiling.
    """
    result: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")  # no activation
    return result


def end_failed_recording(device: torch.device, pool: tuple[int, int]) -> None:
    """Let torch's allocator go on as usual after a recording of a GPU's work that failed.

    `torch.cuda.graph` leaves it as if the recording went on; from then on no memory would be given back.
    """
    index = torch.cuda.current_device() if device.index is None else device.index
    try:
        torch._C._cuda_endAllocateToPool(index, pool)
    except RuntimeError:  # the recording did end; only the work in it failed
        return
    torch._C._cuda_releasePool(index, pool)
