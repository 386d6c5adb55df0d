"""Batches: their order in each epoch, examples of similar length together, and padding on the right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lorahydra.training.jobs import TokenizedExamples, TrainingJob, steps_per_epoch
from lorahydra.training.loss import IGNORED

__all__ = ["Batch", "collate", "epoch_order", "sorted_batches", "step_batches"]

Batch = dict[str, Tensor]
"""What `collate` returns."""

POOL_BATCHES = 50
"""Batches that are formed from one random draw: a larger number means less padding and less randomness."""
SHORT = 32
"""Below this length, attention on a CPU sizes its buffers by the length. If that is not a multiple of 8, the buffers of
two threads are aligned differently: the last bits of a result then depend on the thread, and so on the other rows."""


def step_batches(job: TrainingJob, data: TokenizedExamples, start: int, stop: int) -> Iterator[list[Batch]]:
    """The batches of each optimiser step from `start` up to `stop`; the last step of an epoch may have fewer."""
    config = job.training
    size, parts = config.per_device_train_batch_size, config.gradient_accumulation_steps
    lengths = [int(length) for length in data.lengths]
    for step in range(start, stop):
        epoch, place = divmod(step, steps_per_epoch(config, len(data)))
        if place == 0 or step == start:
            order = epoch_order(lengths, size * parts, job.seed, epoch, group_by_length=config.group_by_length)
        rows = order[place * size * parts : (place + 1) * size * parts]
        yield [collate([data[row] for row in rows[at : at + size]]) for at in range(0, len(rows), size)]


def epoch_order(lengths: Sequence[int], batch_size: int, seed: int, epoch: int, *, group_by_length: bool) -> list[int]:
    """The order of the examples in an epoch; it depends on the arguments alone, so a resumed training sees the same.

    With `group_by_length`, examples are shuffled, sorted by length within pools of `POOL_BATCHES` batches, cut into
    batches, and the batches are shuffled. That leaves little padding, and no drift from long to short as in
    transformers' own sampler. The batch with the longest example comes first, so that running out of memory shows at
    once.

    Args:
        lengths: Tokens of each example.
        batch_size: Examples per optimiser step.
        seed: The seed of the training.
        epoch: Counted from 0.
        group_by_length: Otherwise the order is simply random.
    """
    random = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order: list[int] = torch.randperm(len(lengths), generator=random).tolist()
    if not group_by_length:
        return order
    # The rows of a last batch that is not full are drawn at random, not by length.
    whole = len(order) // batch_size * batch_size
    batches = []
    for start in range(0, whole, POOL_BATCHES * batch_size):
        pool = sorted(order[start : min(whole, start + POOL_BATCHES * batch_size)], key=lambda row: -lengths[row])
        batches += [pool[at : at + batch_size] for at in range(0, len(pool), batch_size)]
    batches = [batches[index] for index in torch.randperm(len(batches), generator=random).tolist()]
    if epoch == 0 and batches:
        longest = max(range(len(batches)), key=lambda index: max(lengths[row] for row in batches[index]))
        batches[0], batches[longest] = batches[longest], batches[0]
    return [row for batch in [*batches, order[whole:]] for row in batch]


def collate(examples: Sequence[Mapping[str, Any]], *, pad_token_id: int = 0) -> Batch:
    """Pad examples to the longest of them, and if that is short, to a multiple of 8.

    The rows of pairs of answers are all chosen ones and then all rejected ones.

    Args:
        examples: Each with `input_ids` and `labels` of equal length; pairs also have `rejected_ids` and
            `rejected_labels`, and may have `reference`, shape `(2,)`.
        pad_token_id: Any valid token: nothing attends to it and it carries no loss.

    Returns:
        `input_ids` and `labels`, int64, shape `(rows, length)`, and `lengths`, int64, `(rows,)`; for pairs with a
        reference, also `reference`, `(rows,)`.
    """
    rows = [(example["input_ids"], example["labels"]) for example in examples]
    if "rejected_ids" in examples[0]:
        rows += [(example["rejected_ids"], example["rejected_labels"]) for example in examples]
    lengths = [len(ids) for ids, _ in rows]
    longest = max(lengths)
    longest += -longest % 8 if longest < SHORT else 0
    input_ids = torch.full((len(rows), longest), pad_token_id, dtype=torch.long)
    labels = torch.full((len(rows), longest), IGNORED, dtype=torch.long)
    for place, ((row_ids, row_labels), length) in enumerate(zip(rows, lengths, strict=True)):
        input_ids[place, :length] = torch.as_tensor(row_ids, dtype=torch.long)
        labels[place, :length] = torch.as_tensor(row_labels, dtype=torch.long)
    batch = {"input_ids": input_ids, "labels": labels, "lengths": torch.tensor(lengths)}
    if "reference" in examples[0]:
        batch["reference"] = torch.stack([example["reference"] for example in examples], dim=1).flatten()
    return batch


def sorted_batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first, so that running out of memory shows at once."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
