"""Splitting: stable, without leaks, never empty; and the examples that a split gives."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from tests.data.conftest import Write, qa

from lorahydra.config.schema import DataConfig
from lorahydra.data import DataSplits, Message, Split, load_splits
from lorahydra.errors import DataError


def load(path: Path, seed: int = 0, **options: Any) -> DataSplits:
    return load_splits(DataConfig(train_file=str(path), **options), seed)


def questions(split: Split | None) -> list[str]:
    return [example.messages[0].content for example in split or ()]


def parts(splits: DataSplits) -> list[list[str]]:
    return [questions(splits.train), questions(splits.validation), questions(splits.test)]


def test_examples_have_their_messages_and_lines(write: Write) -> None:
    content = '\n{"question": "Q", "answer": "A"}\n\n{"question": "P", "answer": "B"}\n'
    splits = load(write("a.jsonl", content), validation_file=str(write("v.jsonl", qa(1))), test_fraction=0)
    assert splits.train[0].messages == (Message("user", "Q"), Message("assistant", "A"))
    assert [example.line for example in splits.train] == [2, 4]
    assert splits.train[-1] == splits.train[1]
    assert splits.train[:2] == list(splits.train)
    assert [splits.train.line(0), splits.train.line(1)] == [2, 4]
    with pytest.raises(IndexError):
        splits.train[2]


def test_every_row_is_in_one_split_in_file_order(write: Write) -> None:
    rows = qa(1000)
    train, validation, test = parts(load(write("a.jsonl", rows)))
    order = [row["question"] for row in rows]
    assert sorted(train + validation + test) == sorted(order)
    assert all(part == sorted(part, key=order.index) for part in (train, validation, test))
    assert 70 <= len(validation) <= 130
    assert 70 <= len(test) <= 130


def test_the_split_depends_on_the_seed_alone(write: Write) -> None:
    path = write("a.jsonl", qa(200))
    assert parts(load(path, seed=1)) == parts(load(path, seed=1))
    assert parts(load(path, seed=1)) != parts(load(path, seed=2))


def test_a_known_split_stays_as_it_is(write: Write) -> None:
    # Literal numbers: another machine, version or byte order has to make the very same cut.
    splits = load(write("a.jsonl", qa(60)), seed=42)
    assert [example.line for example in splits.validation] == [22, 44, 48]
    assert splits.validation.digest == ("3b1c80229bb0e8ff5cdb509e1beee1ee4b248fb0457f5579064c316109596f82")


def test_rows_added_later_do_not_move_the_others(write: Write) -> None:
    before = parts(load(write("a.jsonl", qa(300))))
    after = parts(load(write("b.jsonl", [*qa(150, 1000), *qa(300), *qa(150, 2000)])))
    assert all(set(old) <= set(new) for old, new in zip(before, after, strict=True))


def test_equal_rows_are_never_on_both_sides(write: Write) -> None:
    splits = load(write("a.jsonl", qa(100) * 3))
    train, validation, test = map(set, parts(splits))
    assert len(train | validation | test) == len(train) + len(validation) + len(test)
    assert [leak.same_example for leak in splits.report.leakage] == [0, 0, 0]
    assert splits.report.splits[1].duplicates == len(splits.validation) * 2 // 3


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("seed", range(10))
def test_tiny_files_give_no_empty_split(write: Write, count: int, seed: int) -> None:
    splits = load(write("a.jsonl", qa(count)), seed, validation_fraction=0.001, test_fraction=0.001)
    assert len(splits.train) >= 1
    assert len(splits.validation) == 1
    assert len(splits.test or ()) == (1 if count > 2 else 0)


@pytest.mark.parametrize("seed", range(10))
def test_large_fractions_leave_a_row_to_train_on(write: Write, seed: int) -> None:
    splits = load(write("a.jsonl", qa(4)), seed, validation_fraction=0.5, test_fraction=0.499)
    assert len(splits.train) >= 1


def test_too_few_rows_for_a_test_split_is_warned_about(write: Write) -> None:
    splits = load(write("a.jsonl", qa(2)))
    assert splits.test is None
    assert any("too few rows for a test split" in warning for warning in splits.report.warnings)


def test_no_test_split_unless_wanted(write: Write) -> None:
    splits = load(write("a.jsonl", qa(50)), test_fraction=0)
    assert splits.test is None
    assert not splits.report.warnings


@pytest.mark.parametrize(
    ("rows", "pattern"),
    [(qa(1), r"a\.jsonl: has 1 row, too few"), (qa(1) * 5, "has 5 rows, all the same, too few")],
)
def test_one_row_cannot_be_split(write: Write, rows: list[Any], pattern: str) -> None:
    path = write("a.jsonl", rows)
    with pytest.raises(DataError, match=pattern + ".*give data.validation_file"):
        load(path)
    assert len(load(path, validation_file=str(write("v.jsonl", qa(3)))).train) == len(rows)


def test_no_validation_at_all_is_refused(write: Write) -> None:
    with pytest.raises(DataError, match=r"set data\.validation_fraction above 0, or give data\.validation_file"):
        load(write("a.jsonl", qa(10)), validation_fraction=0)


def test_files_of_their_own_are_not_mixed_with_the_training_file(write: Write) -> None:
    own = {
        "validation_file": str(write("v.jsonl", qa(5, 100))),
        "test_file": str(write("t.jsonl", qa(4, 200))),
    }
    splits = load(write("a.jsonl", qa(30)), **own)
    assert [len(part) for part in parts(splits)] == [30, 5, 4]
    assert splits.validation.source.endswith("v.jsonl")


def test_limits_take_the_first_rows_of_each_split(write: Write) -> None:
    path = write("a.jsonl", qa(200))
    whole, limited = parts(load(path)), parts(load(path, max_train_rows=7, max_eval_rows=3))
    assert limited == [whole[0][:7], whole[1][:3], whole[2][:3]]


def test_the_digest_tells_content_and_order(write: Write) -> None:
    rows = qa(20)
    digests = {
        load(write("a.jsonl", content), validation_file="demo").train.digest
        for content in (rows, [{**row, "extra": 1} for row in rows], rows[::-1], rows[1:])
    }
    assert len(digests) == 3


def test_leakage_counts_prompts_and_whole_examples_apart(write: Write) -> None:
    train = qa(10)
    held = [train[0], {**train[1], "answer": "other"}, *qa(3, 500)]
    splits = load(write("a.jsonl", train), validation_file=str(write("v.jsonl", held)), test_fraction=0)
    [leak] = splits.report.leakage
    assert (leak.of, leak.into, leak.same_prompt, leak.same_example) == ("validation", "train", 2, 1)
    assert any("2 of 5 validation prompts are also in train (1 with" in text for text in splits.report.warnings)


def test_a_conversation_is_not_confused_with_another_of_the_same_letters(write: Write) -> None:
    def chat(*texts: str) -> dict[str, Any]:
        roles = ["user", "assistant"] * 2
        return {"messages": [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]}

    rows = [chat("ab", "c"), chat("a", "bc"), chat("a", "b", "c", "d"), chat("a", "b", "cd", "e")]
    splits = load(write("a.jsonl", rows), validation_file="demo", test_fraction=0)
    assert splits.report.splits[0].duplicates == 0


def test_a_split_can_be_sent_to_another_process(write: Write) -> None:
    split = load(write("a.jsonl", qa(20))).train
    assert list(pickle.loads(pickle.dumps(split))) == list(split)
