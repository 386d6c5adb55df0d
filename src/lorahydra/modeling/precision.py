"""How precisely float32 factors are multiplied, with the meaning that `torch.set_float32_matmul_precision` gives it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from lorahydra.modeling.base import BaseModel
from lorahydra.modeling.cpu_linear import multiplies_bfloat16, rounded_weights

__all__ = ["matmul_precision"]


@contextmanager
def matmul_precision(base: BaseModel, precision: str) -> Iterator[None]:
    """Compute with this precision while the block runs; what the hardware cannot do is computed in float32.

    On a GPU it holds for all float32 products. On a CPU, `medium` holds for the frozen layers of the base model, which
    must not change meanwhile, and `high` is the same as `highest`. Models in other dtypes compute as always. `auto` is
    `medium` on a CPU, where it saves a third of the time and changes less than another seed does (docs/performance.md).
    On a CPU, it is for training mode: validation losses are always those of float32.

    Args:
        base: The base model, possibly with adapters.
        precision: `auto`, `highest`, `high` or `medium`.
    """
    if base.device.type == "cuda":
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest" if precision == "auto" else precision)
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
    else:
        rounds = precision in ("auto", "medium") and base.device.type == "cpu" and multiplies_bfloat16()
        with rounded_weights(base.model) if rounds else nullcontext():
            yield
