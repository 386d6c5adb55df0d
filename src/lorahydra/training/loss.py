"""Cross-entropy on completion tokens, with logits computed only where there is loss.

Most tokens of an instruction example are prompt and padding, and a vocabulary is large, so computing logits for all
of them costs more memory than the rest of the step. A hook on the output head narrows the hidden states to the
positions that carry loss before the head sees them; whatever the model does to its logits afterwards (soft caps,
scales) still happens. If the head is a plain frozen matrix product, as in most models, the loss and its gradient are
computed together in chunks, and the full logits never exist (the idea of arXiv 2410.10989).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional

from lorahydra.modeling.cpu_linear import frozen_linear
from lorahydra.modeling.devices import moved

__all__ = ["IGNORED", "CompletionLoss"]

IGNORED = -100
"""Label of a position without loss."""

CHUNK_BYTES = 64 * 2**20
"""Size of the largest block of float32 logits in the fused loss."""
CUDA_CHUNK_BYTES = 512 * 2**20
"""The same on a GPU, where each block costs a dozen kernels."""


class CompletionLoss:
    """Sums of the cross-entropy over the labelled tokens of a batch, one for each adapter.

    Args:
        model: A causal LM, with or without adapters, as transformers and PEFT make them.
        slots: Adapters that are attached side by side: the model takes the rows of each, one after the other.
    """

    def __init__(self, model: nn.Module, slots: int = 1) -> None:
        causal_lm: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        self._head: nn.Module = causal_lm.get_output_embeddings()
        self._fused = self._is_plain(model, slots)

    def __call__(self, model: nn.Module, input_ids: Tensor, labels: Tensor, slots: int = 1) -> Tensor:
        """Run the model and return the summed losses.

        Nothing waits for a GPU if `labels` are on the CPU.

        Args:
            model: The model given at construction, possibly wrapped for distributed training.
            input_ids: Token ids, shape `(batch, length)`, padded on the right. No attention mask is needed: a causal
                model never looks right, so padding cannot reach a labelled token.
            labels: Same shape; `IGNORED` where there is no loss. Position `i` is predicted from the tokens before it.
            slots: Adapters that are attached; all see the same batch.

        Returns:
            Shape `(slots,)`, float32 or wider.
        """
        targets = labels[:, 1:]
        rows, columns = (targets != IGNORED).nonzero(as_tuple=True)
        wanted = moved(targets[rows, columns], input_ids.device)
        places = moved(rows * labels.shape[1] + columns, input_ids.device)
        with self._narrowed(places, slots) as captured:
            outputs = model(input_ids=input_ids.repeat(slots, 1), use_cache=False)
        if self._fused:
            return _fused_cross_entropy(captured[0], self._head.get_parameter("weight"), wanted)
        logits = outputs.logits[0].float()
        return functional.cross_entropy(logits, wanted.repeat(slots), reduction="none").view(slots, -1).sum(dim=1)

    @contextmanager
    def _narrowed(self, places: Tensor, slots: int) -> Iterator[list[Tensor]]:
        """Let the head see only labelled positions (`(1, slots · n, hidden)`), or only one when the loss is fused.

        Yields a list that holds the labelled hidden states, shape `(slots, n, hidden)`, after the forward pass.
        """
        captured: list[Tensor] = []

        def narrow(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            hidden = args[0]
            selected = hidden.reshape(slots, -1, hidden.shape[-1]).index_select(1, places)
            captured.append(selected)
            return (hidden[:1, :1].detach() if self._fused else selected.flatten(0, 1).unsqueeze(0), *args[1:])

        handle = self._head.register_forward_pre_hook(narrow)
        try:
            yield captured
        finally:
            handle.remove()

    @torch.no_grad()
    def _is_plain(self, model: nn.Module, slots: int) -> bool:
        """Whether the model's logits are just `hidden @ weight.T` with a frozen weight; tested on a few tokens."""
        weight = getattr(self._head, "weight", None)
        if type(self._head) is not nn.Linear or self._head.bias is not None or weight is None or weight.requires_grad:
            return False
        seen: list[Tensor] = []
        handle = self._head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        was_training = model.training
        model.eval()
        try:
            tokens = torch.arange(4, device=weight.device).repeat(slots, 1)
            logits = model(input_ids=tokens, use_cache=False).logits
        finally:
            handle.remove()
            model.train(was_training)
        return torch.equal(logits, frozen_linear(seen[0], weight).to(logits.dtype))


class _FusedCrossEntropy(torch.autograd.Function):
    """Summed cross-entropies of `hidden @ weight.T`; the gradient of `hidden` is made in the forward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        needs_grad = hidden.requires_grad
        grad = torch.empty_like(hidden) if needs_grad else None
        wide = torch.promote_types(hidden.dtype, torch.float32)
        totals = torch.zeros(len(hidden), dtype=wide, device=hidden.device)
        for slots, part in _blocks(hidden, weight):
            wanted = targets[part].expand(len(totals[slots]), -1).unsqueeze(2)
            logits = frozen_linear(hidden[slots, part], weight).to(wide)
            log_sum = torch.logsumexp(logits, dim=2, keepdim=True)
            totals[slots] += (log_sum - logits.gather(2, wanted)).flatten(1).sum(dim=1)
            if grad is not None:
                probabilities = logits.sub_(log_sum).exp_()
                probabilities.scatter_add_(2, wanted, torch.full_like(wanted, -1, dtype=probabilities.dtype))
                grad[slots, part] = frozen_linear(probabilities.to(weight.dtype), weight.t())
        if grad is not None:
            ctx.save_for_backward(grad)
        return totals

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = ctx.saved_tensors
        return grad * grad_outputs[0].to(grad.dtype).view(-1, 1, 1), None, None


def _blocks(hidden: Tensor, weight: Tensor) -> Iterator[tuple[slice, slice]]:
    """Slots and rows whose logits are made at a time. How the rows are cut does not depend on the number of slots."""
    size = CUDA_CHUNK_BYTES if hidden.is_cuda else CHUNK_BYTES
    rows = min(hidden.shape[1], max(1, size // (4 * weight.shape[0])))
    together = max(1, size // (4 * weight.shape[0] * max(1, rows)))
    for slot in range(0, hidden.shape[0], together):
        for start in range(0, hidden.shape[1], max(1, rows)):
            yield slice(slot, slot + together), slice(start, start + rows)


def _fused_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    result: Tensor = _FusedCrossEntropy.apply(hidden, weight, targets)  # type: ignore[no-untyped-call]
    return result
