"""The order of examples, and padding."""

from __future__ import annotations

import numpy as np
import pytest

from lorahydra.training.batches import collate, epoch_order, sorted_batches

LENGTHS = np.random.default_rng(0).integers(5, 300, 403).tolist()


def order(seed: int = 1, epoch: int = 0, *, grouped: bool = True, batch: int = 4) -> list[int]:
    return epoch_order(LENGTHS, batch, seed, epoch, group_by_length=grouped)


def padding(rows: list[int], batch: int = 4) -> int:
    parts = [[LENGTHS[row] for row in rows[start : start + batch]] for start in range(0, len(rows), batch)]
    return sum(max(part) * len(part) - sum(part) for part in parts)


@pytest.mark.parametrize("grouped", [True, False])
def test_every_example_comes_once_per_epoch(grouped: bool) -> None:
    assert sorted(order(grouped=grouped)) == list(range(403))


@pytest.mark.parametrize("grouped", [True, False])
def test_the_order_depends_on_seed_and_epoch_alone(grouped: bool) -> None:
    assert order(1, 2, grouped=grouped) == order(1, 2, grouped=grouped)
    assert order(1, 2, grouped=grouped) != order(1, 3, grouped=grouped)
    assert order(1, 2, grouped=grouped) != order(2, 2, grouped=grouped)


def test_grouping_saves_most_of_the_padding() -> None:
    assert padding(order()) < 0.2 * padding(order(grouped=False))


def test_the_longest_example_comes_first_of_all() -> None:
    assert max(LENGTHS) in [LENGTHS[row] for row in order()[:4]]


def test_batches_do_not_run_from_long_to_short() -> None:
    longest = [max(LENGTHS[row] for row in order(epoch=1)[start : start + 4]) for start in range(0, 400, 4)]
    assert abs(np.corrcoef(longest, range(len(longest)))[0, 1]) < 0.3


def test_fewer_examples_than_a_batch() -> None:
    assert sorted(epoch_order([3, 9], 4, 1, 0, group_by_length=True)) == [0, 1]


def test_padding_carries_no_loss() -> None:
    batch = collate([{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [8], "labels": [8]}])
    assert batch["input_ids"].tolist() == [[5, 6, 7, *[0] * 5], [8, *[0] * 7]], "to a multiple of 8"
    assert batch["lengths"].tolist() == [3, 1]
    assert batch["labels"].tolist() == [[-100, 6, 7, *[-100] * 5], [8, *[-100] * 7]]


def test_batches_for_validation_start_with_the_longest() -> None:
    assert list(sorted_batches([3, 9, 1, 9, 5], 2)) == [[1, 3], [4, 0], [2]]
