"""Cross-entropy on completion tokens, with logits computed only where there is loss.

Most tokens of an instruction example are prompt and padding, and a vocabulary is large, so computing logits for all
of them costs more memory than the rest of the step. A hook on the output head narrows the hidden states to the
positions that carry loss before the head sees them; whatever the model does to its logits afterwards (soft caps,
scales) still happens. If the head is a plain frozen matrix product, as in most models, the loss and its gradient are
computed together in chunks, and the full logits never exist (the idea of arXiv 2410.10989).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional

from lorahydra.modeling.cpu_linear import frozen_linear, frozen_weight
from lorahydra.modeling.devices import moved

__all__ = ["IGNORED", "CompletionLoss", "labelled_places", "loss_scale"]

IGNORED = -100
"""Label of a position without loss."""

CHUNK_BYTES = 64 * 2**20
"""Size of the largest block of float32 logits in the fused loss."""
CUDA_CHUNK_BYTES = 512 * 2**20
"""The same on a GPU, where each block costs a dozen kernels."""


def loss_scale(dtype: torch.dtype, items: int) -> int:
    """The factor of the mean loss for the backward pass: small gradients vanish in float16, but not those of the sum.

    Args:
        dtype: The base model's, in which gradients pass its layers.
        items: Labelled tokens that the mean is over.
    """
    return items if dtype == torch.float16 else 1


class CompletionLoss:
    """Sums of the cross-entropy over the labelled tokens of a batch, one for each adapter.

    Args:
        model: A causal LM, with or without adapters, as transformers and PEFT make them.
        slots: Adapters that are attached side by side: the model takes the rows of each, one after the other.
    """

    def __init__(self, model: nn.Module, slots: int = 1) -> None:
        causal_lm: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        self._head: nn.Module = causal_lm.get_output_embeddings()
        self.from_hidden = self._is_plain(model, slots)
        """Whether the loss follows from the head's input alone."""

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
        return self.total(self.each(model, input_ids, labels, slots))

    def total(self, losses: Tensor) -> Tensor:
        """The sum for each adapter of what `each` returned, shape `(slots,)`."""
        # Part by part, as earlier versions did, so that recorded losses can be reproduced to the last bit.
        parts = losses.split(self._rows_at_a_time(losses.is_cuda), dim=1) if self.from_hidden else (losses,)
        total = parts[0].sum(dim=1)
        for part in parts[1:]:
            total = total + part.sum(dim=1)
        return total

    def each(self, model: nn.Module, input_ids: Tensor, labels: Tensor, slots: int = 1) -> Tensor:
        """Run the model and return the loss of each labelled token; the arguments are those of a call.

        Returns:
            Shape `(slots, labelled tokens)`, in the order of `labelled_places`.
        """
        if self.from_hidden:
            return self.each_of_hidden(self.hidden(model, input_ids, slots), labels, slots)
        places, wanted = _targets(labels, input_ids.device)

        def narrow(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            selected = _at(args[0], places, slots)
            return (selected.flatten(0, 1).unsqueeze(0), *args[1:])

        with _hooked(self._head, narrow):
            logits = model(input_ids=input_ids.repeat(slots, 1), use_cache=False).logits[0].float()
        return functional.cross_entropy(logits, wanted.repeat(slots), reduction="none").view(slots, -1)

    def hidden(self, model: nn.Module, input_ids: Tensor, slots: int = 1) -> Tensor:
        """Run the model without its output head; only for `from_hidden`.

        Returns:
            What the head would see, shape `(slots · batch, length, hidden)`.
        """
        captured: list[Tensor] = []

        def skip(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            captured.append(args[0])
            return (args[0][:1, :1].detach(), *args[1:])

        with _hooked(self._head, skip):
            model(input_ids=input_ids.repeat(slots, 1), use_cache=False)
        return captured[0]

    def each_of_hidden(self, hidden: Tensor, labels: Tensor, slots: int = 1) -> Tensor:
        """The same as `each`, from what `hidden` returned."""
        places, wanted = _targets(labels, hidden.device)
        return _fused_cross_entropy(_at(hidden, places, slots), self.head_weight, wanted)

    def _rows_at_a_time(self, on_gpu: bool) -> int:
        return _rows_of_block(self.head_weight, on_gpu)

    @property
    def head_weight(self) -> Tensor:
        """Of the output head, shape `(vocabulary, hidden)`."""
        return frozen_weight(self._head)

    @torch.no_grad()
    def _is_plain(self, model: nn.Module, slots: int) -> bool:
        """Whether the model's logits are just `hidden @ weight.T` with a frozen weight; tested on a few tokens."""
        weight = getattr(self._head, "weight", None)
        if type(self._head) is not nn.Linear or self._head.bias is not None or weight is None or weight.requires_grad:
            return False
        seen: list[Tensor] = []
        was_training = model.training
        model.eval()
        try:
            with _hooked(self._head, lambda _, args: seen.append(args[0])):
                tokens = torch.arange(4, device=weight.device).repeat(slots, 1)
                logits = model(input_ids=tokens, use_cache=False).logits
            # Also in evaluation mode: in training, the weight may be a rounded copy.
            return torch.equal(logits, frozen_linear(seen[0], self.head_weight).to(logits.dtype))
        finally:
            model.train(was_training)


@contextmanager
def _hooked(head: nn.Module, hook: Callable[[nn.Module, tuple[Tensor, ...]], Any]) -> Iterator[None]:
    """Let `hook` see, and change, what `head` is given."""
    handle = head.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def labelled_places(labels: Tensor) -> Tensor:
    """Positions in the flattened batch whose next token is labelled, ascending."""
    rows, columns = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
    return rows * labels.shape[1] + columns


def _targets(labels: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """The labelled places, and the tokens that are their labels."""
    places = labelled_places(labels)
    return moved(places, device), moved(labels.flatten()[places + 1], device)


def _at(hidden: Tensor, places: Tensor, slots: int) -> Tensor:
    """The hidden states of each slot at these positions, shape `(slots, n, hidden)`."""
    return hidden.reshape(slots, -1, hidden.shape[-1]).index_select(1, places)


class _FusedCrossEntropy(torch.autograd.Function):
    """Cross-entropies of `hidden @ weight.T`; the gradient of `hidden` is made in the forward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        needs_grad = hidden.requires_grad
        grad = torch.empty_like(hidden) if needs_grad else None
        wide = torch.promote_types(hidden.dtype, torch.float32)
        losses = torch.empty(hidden.shape[:2], dtype=wide, device=hidden.device)
        for slots, part in _blocks(hidden, weight):
            wanted = targets[part].expand(len(losses[slots]), -1).unsqueeze(2)
            log_probabilities = _log_softmax(frozen_linear(hidden[slots, part], weight), wide)
            losses[slots, part] = -log_probabilities.gather(2, wanted).flatten(1)
            if grad is not None:
                probabilities = log_probabilities.exp_()
                probabilities.scatter_add_(2, wanted, torch.full_like(wanted, -1, dtype=probabilities.dtype))
                grad[slots, part] = frozen_linear(probabilities.to(hidden.dtype), weight.t())
        if grad is not None:
            ctx.save_for_backward(grad)
        return losses

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = ctx.saved_tensors
        return grad * grad_outputs[0].to(grad.dtype).unsqueeze(2), None, None


def _log_softmax(logits: Tensor, dtype: torch.dtype) -> Tensor:
    """In `dtype`, by one kernel on a GPU; on a CPU in place, which needs less memory."""
    if logits.is_cuda:
        return functional.log_softmax(logits, dim=2, dtype=dtype)
    logits = logits.to(dtype)
    return logits.sub_(torch.logsumexp(logits, dim=2, keepdim=True))


def _blocks(hidden: Tensor, weight: Tensor) -> Iterator[tuple[slice, slice]]:
    """Slots and rows whose logits are made at a time. How the rows are cut does not depend on the number of slots."""
    size = CUDA_CHUNK_BYTES if hidden.is_cuda else CHUNK_BYTES
    rows = min(hidden.shape[1], _rows_of_block(weight, hidden.is_cuda))
    together = max(1, size // (4 * weight.shape[0] * max(1, rows)))
    for slot in range(0, hidden.shape[0], together):
        for start in range(0, hidden.shape[1], max(1, rows)):
            yield slice(slot, slot + together), slice(start, start + rows)


def _rows_of_block(weight: Tensor, on_gpu: bool) -> int:
    return max(1, (CUDA_CHUNK_BYTES if on_gpu else CHUNK_BYTES) // (4 * weight.shape[0]))


def _fused_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    result: Tensor = _FusedCrossEntropy.apply(hidden, weight, targets)  # type: ignore[no-untyped-call]
    return result
