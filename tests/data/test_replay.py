"""General rows that are mixed into the training split, and into no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.data.conftest import Write, qa

from lorahydra.config.data import ReplayConfig
from lorahydra.config.schema import DataConfig
from lorahydra.data import DataSplits, load_splits
from lorahydra.errors import ConfigError, DataError


def general(count: int) -> list[dict[str, str]]:
    return [{"prompt": f"Tell me about {n}.", "completion": f"{n} is a number."} for n in range(count)]


def splits(own: Path, other: Path, seed: int = 1, share: float = 0.2, **options: Any) -> DataSplits:
    replay = ReplayConfig(str(other), share)
    return load_splits(DataConfig(train_file=str(own), replay=replay, **options), seed)


def test_the_share_comes_from_there_and_the_other_splits_stay(write: Write) -> None:
    own, other = write("own.jsonl", qa(100)), write("general.jsonl", general(50))
    without = load_splits(DataConfig(train_file=str(own)), 1)
    mixed = splits(own, other)
    assert mixed.test is not None
    assert without.test is not None
    assert (mixed.validation.digest, mixed.test.digest) == (without.validation.digest, without.test.digest)
    sources = [mixed.train.source_of(n) for n in range(len(mixed.train))]
    assert sources.count(str(own)) == len(without.train) == 80
    assert sources.count(str(other)) == 20
    first = [example.messages[-1].content for example in mixed.train[:20]]
    assert any("number" in text for text in first), "among the others, not behind them"
    own_texts = sorted(example.messages[0].content for example in mixed.train if example.source == str(own))
    assert own_texts == sorted(example.messages[0].content for example in without.train)
    assert [(part.source, len(part)) for part in mixed.train.parts()] == [(str(own), 80), (str(other), 20)]
    assert [part.rows for part in mixed.report.splits[0].parts] == [80, 20]
    assert mixed.report.warnings == without.report.warnings


def test_seed_and_share_choose_the_rows(write: Write) -> None:
    own, other = write("own.jsonl", qa(100)), write("general.jsonl", general(50))

    def chosen(**options: Any) -> set[str]:
        train = splits(own, other, **options).train
        return {example.messages[0].content for example in train if example.source == str(other)}

    assert splits(own, other).train.digest == splits(own, other).train.digest
    assert chosen() == chosen()
    assert chosen() != chosen(seed=2)
    assert chosen(share=0.1) < chosen()
    assert len(chosen(max_train_rows=40)) == 10


def test_few_rows_are_taken_again(write: Write) -> None:
    own = write("own.jsonl", qa(100))
    mixed = splits(own, write("general.jsonl", general(6)))
    assert len(mixed.train) == 100
    assert [warning for warning in mixed.report.warnings if "6 rows are taken 20 times in all" in warning]


def test_rows_that_are_validated_on_are_left_out(write: Write) -> None:
    own = write("own.jsonl", qa(100))
    mixed = splits(own, own, share=0.4)
    held = {example.messages[0].content for example in mixed.validation}
    assert not held & {example.messages[0].content for example in mixed.train}
    one = write("one.jsonl", [{"question": mixed.validation[0].messages[0].content, "answer": "x"}])
    with pytest.raises(DataError, match="has no row whose prompt is not also in the validation or test split"):
        splits(own, one)


@pytest.mark.parametrize(("file", "share"), [("demo", 0.1), ("a.jsonl", 1.0), ("a.jsonl", 0.0), (" ", 0.1)])
def test_a_value_that_is_not_allowed_is_one_line(file: str, share: float) -> None:
    with pytest.raises(ConfigError, match=r"^data\.replay\."):
        ReplayConfig(file, share)


def test_pairs_and_answers_are_not_mixed(write: Write) -> None:
    pairs = [{"prompt": str(n), "chosen": "a", "rejected": "b"} for n in range(30)]
    with pytest.raises(DataError, match="holds no pairs of answers"):
        splits(write("pairs.jsonl", pairs), write("general.jsonl", general(9)), format="preference")
