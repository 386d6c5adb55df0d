"""Puts a model back exactly as it was, whatever was attached to it in the meantime.

PEFT's own `unload` puts the layers back, but not what the run left on them: PiSSA's changed weights, gradient
hooks, patched `forward` methods, checkpointing flags, configuration edits. So the whole object state is
recorded instead: attributes of every module and configuration, and the tensor behind every parameter.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["restored"]


@contextmanager
def restored(model: torch.nn.Module) -> Iterator[None]:
    """Restore `model` when the block ends, even by an exception.

    Restored are the module tree, attributes, hooks, flags (`training`, `requires_grad`), configurations and,
    bit for bit, the weights. Weights cost no memory unless the block replaces them: only references are kept.
    For the same reason a change *inside* a weight's storage (`weight.add_(…)`) is not undone. Attaching, training and
    evaluating an adapter make no such change, but merging an adapter in place would.
    """
    objects = [_State(owner) for owner in _owners(model)]
    weights = [(weight, weight.detach(), weight.requires_grad) for weight in model.parameters()]
    try:
        yield
    finally:
        for state in objects:
            state.restore()
        for weight, original, requires_grad in weights:
            weight.data = original
            weight.grad = None
            weight.requires_grad_(requires_grad)


class _State:
    """Attributes of one object, and the contents of those that are plain containers (hooks, children, …)."""

    def __init__(self, owner: object) -> None:
        self._owner = owner
        self._attributes = dict(vars(owner))
        self._contents = {
            name: value.copy() for name, value in self._attributes.items() if isinstance(value, dict | list | set)
        }

    def restore(self) -> None:
        attributes = vars(self._owner)
        attributes.update(self._attributes)
        for name in attributes.keys() - self._attributes.keys():
            del attributes[name]
        for name, content in self._contents.items():
            # The container itself stays the same object: hook handles and sub-configurations refer to it.
            container: Any = attributes[name]
            container.clear()
            if isinstance(container, list):
                container.extend(content)
            else:
                container.update(content)


def _owners(model: torch.nn.Module) -> Iterator[object]:
    """All modules of `model` and all their configurations, each once."""
    from transformers import GenerationConfig, PreTrainedConfig

    seen: set[int] = set()
    waiting: list[object] = list(model.modules())
    while waiting:
        owner = waiting.pop()
        if id(owner) not in seen:
            seen.add(id(owner))
            yield owner
            waiting += [v for v in vars(owner).values() if isinstance(v, PreTrainedConfig | GenerationConfig)]
