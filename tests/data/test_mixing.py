"""Several training files: each is read in its own way, splits go across all, and weights multiply training rows."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.conftest import CHAT_TEMPLATE
from tests.data.conftest import Write, make_tokenizer, qa

from lorahydra.cli.data import data
from lorahydra.config.changes import REPRODUCTION_NEUTRAL_KEYS, differing
from lorahydra.config.compose import compose
from lorahydra.config.schema import DataConfig
from lorahydra.data import ChatFormat, DataSplits, load_splits, tokenize
from lorahydra.errors import ConfigError, DataError


@pytest.fixture
def files(write: Write) -> list[str]:
    """100 rows of questions and answers, and 60 conversations as CSV."""
    table = "".join(
        f'"[{{""from"":""human"",""value"":""u{n}""}},{{""from"":""gpt"",""value"":""a{n}""}}]"\n' for n in range(60)
    )
    return [str(write("a.jsonl", qa(100))), str(write("b.csv", f"conversations\n{table}"))]


def load(files: list[str], *weights: float, seed: int = 0, **options: Any) -> DataSplits:
    return load_splits(DataConfig(train_file=files, train_weights=list(weights), **options), seed)


def answers(splits: DataSplits, name: str = "train") -> list[str]:
    return [example.messages[-1].content for example in getattr(splits, name)]


def test_formats_may_differ_and_each_split_has_rows_of_each_file(files: list[str]) -> None:
    splits = load(files)
    assert [source.format for source in splits.report.sources] == ["question_answer", "conversations"]
    assert sum(len(split) for split in splits) == 160
    for split in splits:
        assert {example.source for example in split} == set(files)
        assert split.source == ", ".join(files)
        assert [part.source for part in split.parts()] == files
    # A limit takes the first rows of each file in proportion.
    few = Counter(example.source for example in load(files, max_train_rows=40).train)
    assert few[files[0]] == pytest.approx(25, abs=4)


def test_weights_multiply_training_rows_and_leave_the_other_splits_alone(files: list[str]) -> None:
    plain, double, half = load(files), load(files, 1, 2), load(files, 0.5, 1)
    for other in (double, half, load(files, 2.5, 0.1)):
        assert answers(other, "validation") == answers(plain, "validation")
        assert answers(other, "test") == answers(plain, "test")
    once = Counter(answers(plain))
    assert Counter(answers(double)) == {text: 2 if text.startswith("a") else 1 for text in once}
    kept = [text for text in answers(half) if text.startswith("It")]
    assert len(kept) == pytest.approx(sum(text.startswith("It") for text in once) / 2, abs=15)
    assert set(answers(half)) - set(kept) == {text for text in once if text.startswith("a")}


def test_the_share_is_drawn_by_content_and_seed(files: list[str], write: Write) -> None:
    half, more = set(answers(load(files, 0.5, 1))), set(answers(load(files, 0.7, 1)))
    assert half < more
    [path] = files[:1]
    moved = str(write("moved.jsonl", [*reversed(qa(100))]))
    assert set(answers(load([moved, files[1]], 0.5, 1))) == half
    drawn = [{text for text in answers(load([path, files[1]], 0.5, 1, seed=seed)) if text[0] == "I"} for seed in (0, 1)]
    assert drawn[0] != drawn[1]
    two, three = (Counter(answers(load(files, weight, 1))) for weight in (2, 2.5))
    assert all(three[text] - two[text] in (0, 1) for text in three)
    assert 20 < sum((three - two).values()) < 60


def test_one_file_in_a_list_is_that_file(files: list[str]) -> None:
    alone, listed = load_splits(DataConfig(train_file=files[0]), 0), load(files[:1], 1)
    assert [split.digest for split in alone] == [split.digest for split in listed]
    assert [list(split) for split in alone] == [list(split) for split in listed]
    assert alone.train.parts() == []


def test_duplicates_and_leakage_are_found_across_files_but_copies_are_none(write: Write) -> None:
    one, two = str(write("a.jsonl", qa(60))), str(write("b.jsonl", qa(60, 50)))
    held = str(write("v.jsonl", qa(10, 80)))
    report = load([one, two], 2, 1, validation_file=held, test_fraction=0, max_leakage=1).report
    [train, _] = report.splits
    assert (train.rows, train.duplicates) == (180, 10)
    assert "10 of 10 validation prompts are also in train (10 with the same answer)" in report.warnings
    with pytest.raises(DataError, match="larger share than data.max_leakage"):
        load([one, two], validation_file=held)


def test_reports_name_each_file_with_its_digest(files: list[str]) -> None:
    splits = load(files, 2, 1)
    [train, *_] = splits.report.splits
    assert [part.source for part in train.parts] == files
    assert sum(part.rows for part in train.parts) == train.rows == len(splits.train)
    again = load(files, 2, 0.5).report.splits[0].parts
    assert [part.digest == before.digest for part, before in zip(again, train.parts, strict=True)] == [True, False]
    shown = CliRunner().invoke(data, ["check", *files, "data.train_weights=[2,1]", "--seed", "0"]).output
    assert f"of them          {train.parts[1].rows} rows of {files[1]}, digest {train.parts[1].digest}" in shown


def test_tokens_and_errors_belong_to_the_right_file(files: list[str], write: Write) -> None:
    chat = ChatFormat(make_tokenizer(template=CHAT_TEMPLATE))
    long = str(write("long.jsonl", [*qa(30, 500), {"question": "Q" * 500, "answer": "A"}]))
    splits = load([files[1], long], 1, 2, validation_file=files[0], test_fraction=0)
    with pytest.raises(DataError) as caught:
        tokenize(splits.train, chat, max_length=400, overlong="error")
    assert str(caught.value).startswith(f"{long}:31: 522 tokens, over data.max_length=400 (2 of 122 rows of the train")
    tokens = tokenize(splits.train, chat, max_length=400, overlong="drop")
    assert len(tokens) == len(splits.train) - 2
    broken = str(write("broken.jsonl", [*qa(5), {"question": "Q"}]))
    with pytest.raises(DataError, match=r"broken\.jsonl:6: field 'answer': is missing"):
        load([files[0], broken])


def test_names_of_columns_belong_to_the_scheme_that_has_them(files: list[str], write: Write) -> None:
    other = str(write("c.jsonl", [{"q": f"q{n}", "a": f"b{n}"} for n in range(20)]))
    columns = {"question": "q", "answer": "a"}
    splits = load(
        [other, files[1]], columns=compose([*(f"data.columns.{k}={v}" for k, v in columns.items())]).data.columns
    )
    assert [source.format for source in splits.report.sources] == ["question_answer", "conversations"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.train_file=[]"], "data.train_file is an empty list"),
        (["data.train_file=[a,'']"], "data.train_file is empty"),
        (["data.train_file=[a,b]", "data.train_weights=[1]"], "has 1 weights and data.train_file 2 files"),
        (["data.train_file=[a,b]", "data.train_weights=[1,0]"], "weights must be above 0 and at most 100"),
        (["data.train_file=[a,b]", "data.train_weights=[1,nan]"], "weights must be above 0 and at most 100"),
        (["data.mix={a: x}"], "data.train_weights=['x'] is not allowed: give a list of numbers"),
        (["data.mix={a: 1}", "data.train_weights=[1]"], "data.mix names the training files and their weights"),
        (["data.train_weights=[1]"], "names the dataset, and neither is set"),
    ],
)
def test_bad_weights_are_one_line(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["data=local", *overrides])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_mixed_are_one_line(files: list[str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is given twice as a training file"):
        load([files[0], f"{tmp_path}/../{tmp_path.name}/a.jsonl"])
    with pytest.raises(DataError, match="data.test_split=test needs data.test_file"):
        load(files, test_split="test")
    with pytest.raises(DataError, match="no such file"):
        load([files[0], "missing.jsonl"])
    with pytest.raises(DataError, match="data.train_weights leave no training row"):
        load(files, 1e-9, 1e-9)


def test_a_mapping_gives_files_and_weights(files: list[str]) -> None:
    mixed = compose(["data=local", f"data.mix={{{files[0]}: 2, {files[1]}: 0.5}}"])
    listed = compose(["data=local", f"data.train_file=[{','.join(files)}]", "data.train_weights=[2,0.5]"])
    assert mixed.data == listed.data
    # As files may be elsewhere when a run is repeated, but with the same weights.
    moved = compose(["data=local", "data.train_file=[x,y]", "data.train_weights=[2,1]"])
    assert differing(listed, moved, REPRODUCTION_NEUTRAL_KEYS) == ["data.train_weights"]
