"""Cross-entropy on completion tokens, with logits computed only where there is loss.

Most tokens of an instruction example are prompt and padding, and a vocabulary is large, so computing logits for all
of them costs more memory than the rest of the step. A hook on the output head narrows the hidden states to the
positions that carry loss before the head sees them; whatever the model does to its logits afterwards (soft caps,
scales) still happens. Where the head is a plain frozen matrix product, as in most models, the loss and its gradient
are computed together in chunks, and the full logits never exist (the idea of arXiv 2410.10989).
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

__all__ = ["IGNORED", "CompletionLoss"]

IGNORED = -100
"""Label of a position without loss."""

CHUNK_BYTES = 64 * 2**20
"""Size of the largest block of float32 logits in the fused loss."""


class CompletionLoss:
    """Sum of the cross-entropy over the labelled tokens of a batch.

    Args:
        model: A causal LM, with or without adapters, as transformers and PEFT make them.
    """

    def __init__(self, model: nn.Module) -> None:
        causal_lm: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        self._head: nn.Module = causal_lm.get_output_embeddings()
        self._fused = self._is_plain(model)

    def __call__(self, model: nn.Module, input_ids: Tensor, labels: Tensor) -> Tensor:
        """Run the model and return the summed loss.

        Args:
            model: The model given at construction, possibly wrapped for distributed training.
            input_ids: Token ids, shape `(batch, length)`, padded on the right. No attention mask is needed: a causal
                model never looks right, so padding cannot reach a labelled token.
            labels: Same shape; `IGNORED` where there is no loss. Position `i` is predicted from the tokens before it.

        Returns:
            A scalar, float32.
        """
        targets = labels[:, 1:]
        labelled = targets != IGNORED
        with self._narrowed(labelled) as captured:
            outputs = model(input_ids=input_ids, use_cache=False)
        wanted = targets[labelled]
        if self._fused:
            return _fused_cross_entropy(captured[0], self._head.get_parameter("weight"), wanted)
        return functional.cross_entropy(outputs.logits[0].float(), wanted, reduction="sum")

    @contextmanager
    def _narrowed(self, labelled: Tensor) -> Iterator[list[Tensor]]:
        """Let the head see only labelled positions (`(1, n, hidden)`), or only one when the loss is fused.

        Yields a list that holds the labelled hidden states, shape `(n, hidden)`, after the forward pass.
        """
        captured: list[Tensor] = []

        def narrow(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            hidden = args[0]
            selected = hidden[:, :-1][labelled]
            captured.append(selected)
            return (hidden[:1, :1].detach() if self._fused else selected.unsqueeze(0), *args[1:])

        handle = self._head.register_forward_pre_hook(narrow)
        try:
            yield captured
        finally:
            handle.remove()

    @torch.no_grad()
    def _is_plain(self, model: nn.Module) -> bool:
        """Whether the model's logits are just `hidden @ weight.T` with a frozen weight, tried on a few tokens."""
        weight = getattr(self._head, "weight", None)
        if type(self._head) is not nn.Linear or self._head.bias is not None or weight is None or weight.requires_grad:
            return False
        seen: list[Tensor] = []
        handle = self._head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        was_training = model.training
        model.eval()
        try:
            tokens = torch.arange(4, device=weight.device).unsqueeze(0)
            logits = model(input_ids=tokens, use_cache=False).logits
        finally:
            handle.remove()
            model.train(was_training)
        return torch.equal(logits, frozen_linear(seen[0], weight).to(logits.dtype))


class _FusedCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy of `hidden @ weight.T`; the gradient of `hidden` is made in the forward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        needs_grad = hidden.requires_grad
        grad = torch.empty_like(hidden) if needs_grad else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        rows = max(1, CHUNK_BYTES // (4 * weight.shape[0]))
        for start in range(0, hidden.shape[0], rows):
            part = slice(start, start + rows)
            wanted = targets[part].unsqueeze(1)
            logits = frozen_linear(hidden[part], weight).float()
            log_sum = torch.logsumexp(logits, dim=1, keepdim=True)
            total += (log_sum - logits.gather(1, wanted)).sum()
            if grad is not None:
                probabilities = logits.sub_(log_sum).exp_()
                probabilities.scatter_add_(1, wanted, torch.full_like(wanted, -1, dtype=probabilities.dtype))
                grad[part] = frozen_linear(probabilities.to(weight.dtype), weight.t())
        if grad is not None:
            ctx.save_for_backward(grad)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = ctx.saved_tensors
        return grad * grad_outputs[0].to(grad.dtype), None, None


def _fused_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    result: Tensor = _FusedCrossEntropy.apply(hidden, weight, targets)  # type: ignore[no-untyped-call]
    return result
