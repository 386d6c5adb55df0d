"""Several LoRA adapters side by side on one base model: the rows of each go through the frozen layers in one product.

```python
starts = [new_adapter(base, lora, seed) for lora in settings]
with packed(base, starts, seed) as pack:
    base.model(ids.repeat(pack.slots, 1))  # rows of the first adapter, then of the second …
```

PEFT makes, names, saves and loads the adapters. In between, their weights lie in one tensor with one row per adapter,
which is what optimisers change, and each linear layer multiplies with all adapters' parts of it at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lorahydra.config.schema import LoraConfig
from lorahydra.modeling.base import BaseModel
from lorahydra.modeling.compat import is_view, tensor_norms
from lorahydra.modeling.lora import adapter
from lorahydra.modeling.peft_format import adapter_weights, write_adapter
from lorahydra.modeling.restoring import restored

if TYPE_CHECKING:
    import peft

__all__ = ["NewAdapter", "Pack", "new_adapter", "norms_of", "packed"]

PREFIX = "base_model.model."
"""What PEFT writes before the names of the base model's modules."""
PARTS = ("lora_A", "lora_B")


@dataclass(frozen=True)
class NewAdapter:
    """An adapter as PEFT initialises it."""

    config: peft.LoraConfig
    weights: dict[str, Tensor]
    """On the CPU, by PEFT's names: of each layer `A`, shape `(r, in_features)`, and `B`, shape `(out_features, r)`."""

    @property
    def layers(self) -> list[str]:
        """Names of the base model's layers that it changes."""
        return [name.removeprefix(PREFIX).removesuffix(".lora_A.weight") for name in self.weights if ".lora_A." in name]

    @property
    def scaling(self) -> float:
        """The factor by which the adapter's product is multiplied."""
        config = self.config
        return float(config.lora_alpha / (config.r**0.5 if config.use_rslora else config.r))


def new_adapter(base: BaseModel, lora: LoraConfig, seed: int) -> NewAdapter:
    """Let PEFT initialise an adapter; the base model does not change.

    Raises:
        ModelError: The settings do not fit the base model.
    """
    with adapter(base, lora, seed) as model:
        config, weights = adapter_weights(model)
        return NewAdapter(config, {name: value.detach().cpu().clone() for name, value in weights.items()})


class Pack:
    """The weights of `slots` adapters of the same layers.

    Smaller ranks are padded with zeros, which stay zero: a zero row of `A` gets its gradient through a zero column of
    `B`, and the other way round.

    Args:
        base: The base model.
        starts: The adapters.
        seed: Of the dropout.
    """

    def __init__(self, base: BaseModel, starts: Sequence[NewAdapter], seed: int) -> None:
        self._starts = list(starts)
        self._seed = seed
        self._place = (0, 0)
        self.generator = torch.Generator(base.device)
        """Of the dropout."""
        self._keyed = base.device.type != "cuda"
        """Whether each layer seeds the generator, and not each pass: a recording cannot seed it in the middle."""
        self._layout = _layout(starts)
        # float16 has too small a range for the gradients of an adapter.
        dtype = torch.float32 if base.dtype == torch.float16 else base.dtype
        self._sizes = [rows * columns for rows, columns in self._layout.values()]
        shape, wide = (len(starts), sum(self._sizes)), torch.promote_types(base.dtype, torch.float32)
        self._set(torch.zeros(shape, dtype=wide, device=base.device), dtype)
        for slot, start in enumerate(starts):
            for name, target in zip(self._layout, self.matrices(self.weights, slot), strict=True):
                target.copy_(start.weights[name])
        self.refresh()

    def _set(self, weights: Tensor, dtype: torch.dtype) -> None:
        self.weights = weights
        """One row per adapter, float32 or wider: what optimisers change, in place."""
        self._working = weights if weights.dtype == dtype else weights.to(dtype)
        self.leaves = {name: part.requires_grad_() for name, part in self._parts(self._working.detach()).items()}
        """What the layers multiply with, by PEFT's names: shapes `(slots, R, in)` and `(slots, out, R)`."""
        scaling = [[[start.scaling]] for start in self._starts]
        dropout = [[[start.config.lora_dropout]] for start in self._starts]
        self.scaling = torch.tensor(scaling, dtype=weights.dtype, device=weights.device)
        self.dropout = torch.tensor(dropout, device=weights.device) if any(p[0][0] for p in dropout) else None
        self.scaling_of_kept = self.scaling if self.dropout is None else self.scaling / (1 - self.dropout)
        """The factor that makes up for the inputs that dropout removes."""

    @property
    def slots(self) -> int:
        """Number of adapters."""
        return len(self._starts)

    @property
    def names(self) -> list[str]:
        """PEFT's names of the matrices of an adapter."""
        return list(self._layout)

    def at(self, step: int, part: int) -> None:
        """Set which forward pass of which step is next; dropout depends only on this, the seed and the layer."""
        self._place = (step, part)
        if not self._keyed:
            self.generator.manual_seed(self._key())

    def refresh(self) -> None:
        """Make the layers use `weights`."""
        if self._working is not self.weights:
            self._working.copy_(self.weights)

    def take_gradients(self) -> Tensor:
        """Gradients of the last backward pass, in the shape and dtype of `weights`; the leaves have none afterwards."""
        leaves = self.leaves.values()
        gradients = [(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad).flatten(1) for leaf in leaves]
        for leaf in leaves:
            leaf.grad = None
        return torch.cat(gradients, dim=1).to(self.weights.dtype)

    def recomputes(self) -> None:
        """Prepare for activation checkpointing, which computes layers again, and needs the same dropout then."""
        self._keyed = True

    def matrices(self, rows: Tensor, slot: int) -> list[Tensor]:
        """The matrices of one adapter in a tensor in the shape of `weights`, without the padding of its rank."""
        rank = self._starts[slot].config.r
        parts = self._parts(rows).items()
        return [part[slot, :rank] if ".lora_A." in name else part[slot, :, :rank] for name, part in parts]

    def norms(self, gradients: Tensor) -> Tensor:
        """Euclidean norm of each adapter's gradient, shape `(slots,)`."""
        return norms_of(gradients, self._sizes)

    def keep(self, slots: Sequence[int]) -> None:
        """Keep only these adapters; the memory of the others is freed."""
        self._starts = [self._starts[slot] for slot in slots]
        self._set(self.weights[list(slots)], self._working.dtype)

    def save(self, slot: int, folder: Path) -> None:
        """Write one adapter in PEFT's format, as a whole or not at all.

        Raises:
            OutputError: The folder cannot be written, or it holds something that is not an adapter.
        """
        start, parts = self._starts[slot], zip(self._layout, self.matrices(self.weights, slot), strict=True)
        write_adapter(start.config, {name: part.to(start.weights[name].dtype) for name, part in parts}, folder)

    def keep_mask(self, layer: str, shape: tuple[int, ...]) -> Tensor | None:
        """Which inputs of a layer dropout keeps, shape `(slots, *shape)`; None where all are.

        All adapters compare the same random numbers with their own rate, so other adapters do not affect the result.
        """
        if self.dropout is None:
            return None
        if self._keyed:
            self.generator.manual_seed(self._key(layer))
        return torch.rand(shape, generator=self.generator, device=self.weights.device) >= self.dropout

    def _key(self, *layer: str) -> int:
        content = " ".join(map(str, (self._seed, self._place, *layer)))
        return int.from_bytes(hashlib.blake2b(content.encode(), digest_size=7).digest())

    def _parts(self, rows: Tensor) -> dict[str, Tensor]:
        """Views of `(slots, size)`, by name and in the shape `(slots, …)`."""
        parts = rows.split(self._sizes, dim=1)
        return {
            name: part.view(len(rows), *shape) for (name, shape), part in zip(self._layout.items(), parts, strict=True)
        }


def _layout(starts: Sequence[NewAdapter]) -> dict[str, tuple[int, int]]:
    """Shape of each matrix, with the largest rank, by PEFT's names."""
    rank = max(start.config.r for start in starts)
    first = starts[0].weights
    return {n: (rank, v.shape[1]) if ".lora_A." in n else (v.shape[0], rank) for n, v in first.items()}


def norms_of(rows: Tensor, sizes: list[int]) -> Tensor:
    """Euclidean norm of each row.

    Args:
        rows: Shape `(n, size)`.
        sizes: Of the matrices that a row consists of.

    Returns:
        Shape `(n,)`.
    """
    if rows.is_cuda:
        norms: Tensor = torch.linalg.vector_norm(rows, dim=1)
        return norms
    # As `clip_grad_norm_` does it, so that it is the same bit for bit: the norm of the norms of all matrices.
    parts = [part for parts in rows.split(sizes, dim=1) for part in parts.unbind()]
    norms = torch.stack(tensor_norms(parts)).view(-1, len(rows))
    return torch.stack([torch.linalg.vector_norm(row) for row in norms.T.contiguous()])


@contextmanager
def packed(base: BaseModel, starts: Sequence[NewAdapter], seed: int) -> Iterator[Pack]:
    """Attach adapters side by side in training mode, and remove them when the block ends, even by an exception.

    Afterwards `base` is as it was, bit for bit.

    Args:
        base: The base model; it then takes the rows of the first adapter, of the second, and so on.
        starts: Of the same layers; ranks, scales and dropout may differ.
        seed: Of the dropout.
    """
    with restored(base.model):
        pack = Pack(base, starts, seed)
        for layer in starts[0].layers:
            base.model.set_submodule(layer, PackedLinear(base.model.get_submodule(layer), pack, layer))
        base.model.train()
        yield pack


class PackedLinear(nn.Module):
    """A frozen layer plus the update of each adapter for its own rows.

    Args:
        base_layer: Maps `(…, in_features)` to `(…, out_features)`.
        pack: The adapters' weights.
        name: Of the layer in the base model.
    """

    def __init__(self, base_layer: nn.Module, pack: Pack, name: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        self._pack = pack
        self._name = name
        self._leaves = [f"{PREFIX}{name}.{part}.weight" for part in PARTS]

    def forward(self, inputs: Tensor) -> Tensor:
        """As the base layer's; the first dimensions hold the adapters' rows one after the other."""
        pack, width = self._pack, inputs.shape[-1]
        a, b = (pack.leaves[name] for name in self._leaves)
        kept = pack.keep_mask(self._name, (inputs.numel() // width // pack.slots, width)) if self.training else None
        scaling = pack.scaling if kept is None else pack.scaling_of_kept
        result: Tensor = _LowRank.apply(self.base_layer(inputs), inputs, a, b, scaling, kept)  # type: ignore[no-untyped-call]
        return result


class _LowRank(torch.autograd.Function):
    """`outputs + scaling · (kept · inputs) Aᵀ Bᵀ`, slot by slot in batched products.

    On a CPU each product has the order and layout that PEFT's layers and autograd give it, so that results are the
    same bit for bit; elsewhere the scaling is applied where the matrices are narrow, and the sum is part of a product.
    """

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, inputs: Tensor, a: Tensor, b: Tensor, scaling: Tensor, kept: Any) -> Tensor:
        rows = inputs.reshape(len(a), -1, inputs.shape[-1]).to(a.dtype)
        low = torch.bmm(rows if kept is None else rows * kept, a.mT)
        # A view (layers with a bias make one) cannot be written into.
        result = outputs.clone() if is_view(outputs) else outputs
        wide = result.view(len(a), -1, result.shape[-1])
        ctx.narrow = _scales_narrow(wide, a)
        if ctx.narrow:
            low = torch.mul(low, scaling, out=low)
            wide.baddbmm_(low, b.mT)
        else:
            wide.add_(torch.bmm(low, b.mT).mul_(scaling))
        if result is outputs:
            ctx.mark_dirty(outputs)
        ctx.save_for_backward(rows, low, a, b, scaling, kept)
        ctx.shape, ctx.dtype = inputs.shape, inputs.dtype
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, low, a, b, scaling, kept = ctx.saved_tensors
        outer = gradients[0].reshape(len(a), -1, b.shape[1]).to(a.dtype)
        if not ctx.narrow:
            outer = (outer * scaling).to(a.dtype)
        inner = torch.bmm(outer, b)
        if ctx.narrow:
            torch.mul(inner, scaling, out=inner)
        grad_b = torch.bmm(outer.mT, low)
        grad_a = torch.bmm(inner.mT, rows if kept is None else rows * kept)
        grad_inputs = None
        if ctx.needs_input_grad[1]:
            grad_inputs = torch.bmm(inner, a)
            if kept is not None:
                grad_inputs *= kept
            grad_inputs = grad_inputs.view(ctx.shape).to(ctx.dtype)
        return gradients[0], grad_inputs, grad_a, grad_b, None, None


def _scales_narrow(wide: Tensor, a: Tensor) -> bool:
    return wide.is_cuda and wide.dtype == a.dtype
