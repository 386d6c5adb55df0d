"""Batches: their order in each epoch, examples of similar length together, and padding on the right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from lorahydra.training.loss import IGNORED

__all__ = ["EpochSampler", "collate", "sorted_batches"]

POOL_BATCHES = 50
"""Batches that are formed from one random draw: more of them mean less padding and less randomness."""


class EpochSampler(Sampler[int]):
    """The order of examples, made from the seed and the epoch alone, so that a resumed training sees the same one.

    With `group_by_length`, examples are shuffled, sorted by length within pools of `POOL_BATCHES` batches, cut into
    batches, and the batches shuffled: little padding, but no drift from long to short as transformers' own sampler has
    it. The batch with the longest example comes first of all, so that running out of memory shows at once.

    Args:
        lengths: Tokens of each example.
        batch_size: Examples per optimiser step.
        seed: Of the training.
        group_by_length: Otherwise the order is merely random.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, *, group_by_length: bool) -> None:
        self._lengths = lengths
        self._batch_size = batch_size
        self._seed = seed
        self._grouped = group_by_length
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        random = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
        order = torch.randperm(len(self._lengths), generator=random).tolist()
        if not self._grouped:
            yield from order
            return
        batches = self._batches(order)
        # A batch that is not full has to stay last: the order is cut into equal parts.
        full = [batch for batch in batches if len(batch) == self._batch_size]
        full = [full[index] for index in torch.randperm(len(full), generator=random).tolist()]
        if self._epoch == 0 and full:
            longest = max(range(len(full)), key=lambda index: max(self._lengths[row] for row in full[index]))
            full[0], full[longest] = full[longest], full[0]
        for batch in [*full, *(batch for batch in batches if len(batch) < self._batch_size)]:
            yield from batch

    def _batches(self, order: list[int]) -> list[list[int]]:
        size = self._batch_size
        # Whoever is left over is drawn at random, not by length.
        full, rest = order[: len(order) // size * size], order[len(order) // size * size :]
        batches = []
        for start in range(0, len(full), POOL_BATCHES * size):
            pool = sorted(full[start : start + POOL_BATCHES * size], key=lambda row: -self._lengths[row])
            batches += [pool[at : at + size] for at in range(0, len(pool), size)]
        return [*batches, rest] if rest else batches


SHORT = 32
"""Below this length, attention on a CPU sizes its buffers by the length. If that is not a multiple of 8, the buffers of
two threads are aligned differently: the last bits of a result then depend on the thread, and so on the other rows."""


def collate(examples: Sequence[Mapping[str, Any]], *, pad_token_id: int = 0) -> dict[str, Tensor]:
    """Pad examples to the longest of them, and where that is short, to a multiple of 8.

    Args:
        examples: Each with `input_ids` and `labels` of equal length.
        pad_token_id: Any valid token: nothing attends to it and it carries no loss.

    Returns:
        `input_ids` and `labels`, int64, shape `(len(examples), length)`, and `lengths`, int64, `(len(examples),)`.
    """
    longest = max(len(example["input_ids"]) for example in examples)
    longest += -longest % 8 if longest < SHORT else 0
    input_ids = torch.full((len(examples), longest), pad_token_id, dtype=torch.long)
    labels = torch.full((len(examples), longest), IGNORED, dtype=torch.long)
    for row, example in enumerate(examples):
        length = len(example["input_ids"])
        input_ids[row, :length] = torch.as_tensor(example["input_ids"], dtype=torch.long)
        labels[row, :length] = torch.as_tensor(example["labels"], dtype=torch.long)
    lengths = torch.tensor([len(example["input_ids"]) for example in examples])
    return {"input_ids": input_ids, "labels": labels, "lengths": lengths}


def sorted_batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first, so that running out of memory shows at once."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
