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
    assert [example.line for example in splits.validation] == [11, 22, 40, 44, 48, 53]
    assert splits.validation.digest == "84778f91a40460314b3917c73b773272bb8aba1a63496c0324af5874824d5840"
    # As older versions made it.
    splits = load(write("a.jsonl", qa(60)), seed=42, split_version=1)
    assert [example.line for example in splits.validation] == [22, 44, 48]
    assert splits.validation.digest == "3b1c80229bb0e8ff5cdb509e1beee1ee4b248fb0457f5579064c316109596f82"
    splits = load(write("b.jsonl", qa(2000)), seed=42)
    assert [len(part) for part in parts(splits)] == [1590, 212, 198]
    assert splits.validation.digest.startswith("5bfe5198c6ecddec")


def test_rows_added_later_do_not_move_the_others(write: Write) -> None:
    before = parts(load(write("a.jsonl", qa(3000))))
    after = parts(load(write("b.jsonl", [*qa(1500, 10000), *qa(3000), *qa(1500, 20000)])))
    assert all(set(old) <= set(new) for old, new in zip(before, after, strict=True))


@pytest.mark.parametrize("seed", range(20))
def test_rows_added_to_small_data_move_few_of_the_others(write: Write, seed: int) -> None:
    before = parts(load(write("a.jsonl", qa(100)), seed))
    after = parts(load(write("b.jsonl", qa(120)), seed))
    assert sum(len(set(old) - set(new)) for old, new in zip(before, after, strict=True)) <= 10


@pytest.mark.parametrize(
    ("count", "expected"), [(20, (16, 2, 2)), (40, (32, 4, 4)), (75, (59, 8, 8)), (300, (240, 30, 30))]
)
@pytest.mark.parametrize("seed", range(10))
def test_small_data_are_split_exactly(write: Write, count: int, expected: tuple[int, ...], seed: int) -> None:
    assert tuple(map(len, parts(load(write("a.jsonl", qa(count)), seed)))) == expected


def test_larger_data_are_split_by_a_threshold_within_limits(write: Write) -> None:
    path = write("a.jsonl", qa(600))
    sizes = [[len(part) for part in parts(load(path, seed))[1:]] for seed in range(20)]
    assert all(53 <= size <= 67 for pair in sizes for size in pair)
    assert len({size for pair in sizes for size in pair}) > 5


def test_rows_of_one_prompt_are_on_one_side(write: Write) -> None:
    rows = [{"question": f"Q {n % 150}", "answer": f"A {n}"} for n in range(600)]
    splits = load(write("a.jsonl", rows))
    assert [leak.same_prompt for leak in splits.report.leakage] == [0, 0, 0]
    assert 45 <= len(splits.validation) <= 75
    # Not where one prompt would make a split by itself.
    splits = load(write("b.jsonl", [{"question": f"Q {n % 2}", "answer": f"A {n}"} for n in range(100)]))
    assert [len(part) for part in parts(splits)] == [80, 10, 10]
    assert splits.report.leakage[0].same_prompt == 10
    # Nor where nothing would be left for the other splits.
    splits = load(write("c.jsonl", [{"question": "Q", "answer": f"A {n}"} for n in range(3)]))
    assert [len(part) for part in parts(splits)] == [1, 1, 1]


def test_splits_of_few_rows_are_warned_about_with_what_they_are_too_few_for(write: Write) -> None:
    path = write("a.jsonl", qa(20))
    assert load(path).report.warnings == [
        "validation has 2 rows, too few to tell trials apart: scores will differ by chance; add rows, raise "
        "data.validation_fraction, or give data.validation_file",
        "test has 2 rows, too few to say whether tuning helped: scores will differ by chance; add rows, raise "
        "data.test_fraction, or give data.test_file",
    ]
    assert load(path, max_eval_rows=2).report.warnings == []
    held = str(write("v.jsonl", qa(1, 100)))
    [warning] = load(path, validation_file=held, test_fraction=0).report.warnings
    assert warning.endswith(
        "validation has 1 row, too few to tell trials apart: scores will differ by chance; add rows"
    )


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
    assert splits.report.warnings[1].startswith("test has 0 rows, too few to say whether tuning helped")


def test_no_test_split_unless_wanted(write: Write) -> None:
    splits = load(write("a.jsonl", qa(100)), test_fraction=0)
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
    assert len(load(path, validation_file=str(write("v.jsonl", qa(3, 50)))).train) == len(rows)


def test_no_validation_at_all_is_refused(write: Write) -> None:
    with pytest.raises(DataError, match=r"set data\.validation_fraction above 0, or give data\.validation_file"):
        load(write("a.jsonl", qa(10)), validation_fraction=0)


def test_files_of_their_own_are_not_mixed_with_the_training_file(write: Write) -> None:
    settings = {
        "validation_file": str(write("v.jsonl", qa(5, 100))),
        "test_file": str(write("t.jsonl", qa(4, 200))),
    }
    splits = load(write("a.jsonl", qa(30)), **settings)
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
    files = {"validation_file": str(write("v.jsonl", held)), "test_fraction": 0}
    splits = load(write("a.jsonl", train), **files, max_leakage=0.4)
    [leak] = splits.report.leakage
    assert (leak.of, leak.into, leak.same_prompt, leak.same_example) == ("validation", "train", 2, 1)
    assert any("2 of 5 validation prompts are also in train (1 with" in text for text in splits.report.warnings)


def test_more_leakage_than_is_allowed_is_refused(write: Write) -> None:
    path, held = write("a.jsonl", qa(12)), write("v.jsonl", qa(4, 9))
    load(path, test_file=str(held), max_leakage=0.75)
    with pytest.raises(
        DataError,
        match=r"v\.jsonl: 3 of 4 test prompts are also in train \(3 .*a larger share than data\.max_leakage=0\.5",
    ):
        load(path, validation_file=str(write("w.jsonl", qa(9, 90))), test_file=str(held), max_leakage=0.5)
    with pytest.raises(DataError, match="12 of 12 validation prompts are also in train"):
        load(path, validation_file=str(path), test_fraction=0)


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
