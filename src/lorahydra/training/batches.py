"""Batches: padding on the right, and examples of similar length together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lorahydra.training.loss import IGNORED

__all__ = ["collate", "sorted_batches"]


def collate(examples: Sequence[Mapping[str, Any]], *, pad_token_id: int = 0) -> dict[str, Tensor]:
    """Pad examples to the longest of them.

    Args:
        examples: Each with `input_ids` and `labels` of equal length.
        pad_token_id: Any valid token: nothing attends to it and it carries no loss.

    Returns:
        `input_ids` and `labels`, int64, shape `(len(examples), longest)`.
    """
    longest = max(len(example["input_ids"]) for example in examples)
    input_ids = torch.full((len(examples), longest), pad_token_id, dtype=torch.long)
    labels = torch.full((len(examples), longest), IGNORED, dtype=torch.long)
    for row, example in enumerate(examples):
        length = len(example["input_ids"])
        input_ids[row, :length] = torch.as_tensor(example["input_ids"], dtype=torch.long)
        labels[row, :length] = torch.as_tensor(example["labels"], dtype=torch.long)
    return {"input_ids": input_ids, "labels": labels}


def sorted_batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first, so that running out of memory shows at once."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
