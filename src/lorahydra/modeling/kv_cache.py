"""A key-value cache whose memory is allocated once, instead of being copied as a whole for every token."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from lorahydra.modeling.compat import takes_dynamic_cache

__all__ = ["growing_cache", "keep_rows", "write_at"]


ROWS_CAN_LEAVE = (DynamicLayer, DynamicSlidingWindowLayer)


class _PreallocatedLayer(DynamicLayer):
    """Keys and values of one layer in buffers of a fixed capacity; callers get views of the filled part.

    Args:
        capacity: Tokens that fit: prompt and answer together.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self._capacity = capacity
        self._filled = 0
        self._buffers: tuple[Tensor, Tensor] | None = None
        self.place: Tensor | None = None
        """Where the next token's keys and values go, int64, shape `(1,)`, if the caller says; it then gets the whole
        buffers."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Append the new tokens' keys and values, each of shape `(batch, heads, tokens, head_dim)`."""
        if self._buffers is None:
            self.lazy_initialization(key_states, value_states)
            batch, heads, _tokens, key_size = key_states.shape
            # Zeros, because even what a mask hides must not be NaN.
            self._buffers = (
                key_states.new_zeros(batch, heads, self._capacity, key_size),
                value_states.new_zeros(batch, heads, self._capacity, value_states.shape[-1]),
            )
        if self.place is not None:
            for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
                buffer.index_copy_(2, self.place, states)
            return self._buffers
        start, self._filled = self._filled, self._filled + key_states.shape[-2]
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start : self._filled] = states
        self._show()
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only some rows of the batch."""
        if self._buffers is not None:
            keys, values = self._buffers
            self._buffers = (keys[indices], values[indices])
            self._show()

    def _show(self) -> None:
        if self._buffers is not None:
            self.keys, self.values = (buffer[:, :, : self._filled] for buffer in self._buffers)


def growing_cache(model: PreTrainedModel, capacity: int) -> Cache | None:
    """A cache for `capacity` tokens per row, or None if the model keeps a state from which rows cannot be removed."""
    if not takes_dynamic_cache(model):
        return None
    standard = DynamicCache(config=model.config.get_text_config(decoder=True))
    if standard.layers and all(type(layer) is DynamicLayer for layer in standard.layers):
        return Cache(layers=[_PreallocatedLayer(capacity) for _ in standard.layers])
    # Hybrid layers are dynamic as well, but have a state of their own besides keys and values.
    return standard if all(type(layer) in ROWS_CAN_LEAVE for layer in standard.layers) else None


def write_at(cache: Cache, place: Tensor | None) -> bool:
    """Let `cache` write each next token at `place`, which the caller moves on, and show its whole capacity.

    Args:
        cache: From `growing_cache`.
        place: int64, shape `(1,)`; None to append and show what is filled, as at first.

    Returns:
        False, and nothing has changed, if the cache cannot do that.
    """
    layers = [layer for layer in cache.layers if isinstance(layer, _PreallocatedLayer)]
    if len(layers) < len(cache.layers):
        return False
    for layer in layers:
        layer.place = place
    return True


def keep_rows(cache: Cache, rows: Tensor) -> None:
    """Drop all rows of the batch but `rows` (int64 indices)."""
    cache.batch_select_indices(rows.to(torch.long))
