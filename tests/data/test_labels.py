"""Answers that people have scored: which files are read, and what is said about the others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lorahydra.data.labels import number, read_labels
from lorahydra.errors import DataError

HEADER = "prompt,answer,score"


def rows(count: int = 12, score: str = "{n}") -> list[str]:
    return [f"Question {n}?,Answer {n},{score.format(n=n)}" for n in range(count)]


def written(folder: Path, lines: list[str], name: str = "labels.csv") -> str:
    path = folder / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def test_a_table_with_all_columns(tmp_path: Path) -> None:
    header = "question;prediction;reference;score;correctness;judge_score;judge_correctness;bertscore_f1;note"
    lines = [f"q{n};a{n};r{n};{n},5;{n};{n * 8};{n / 3};0.9;x" for n in range(11)]
    lines.append("q;a;r;;;;;;nobody scored it")
    labels = read_labels(written(tmp_path, [header, *lines]))
    assert len(labels) == 11
    label = labels[2]
    assert (label.place, label.prompt, label.answer, label.reference) == ("line 4", "q2", "a2", "r2")
    assert (label.score, label.judge_score, label.bertscore_f1) == (2.5, 16, 0.9)
    assert label.criteria == {"correctness": 2}
    assert label.judge_criteria == {"correctness": pytest.approx(2 / 3)}


def test_lines_of_json_with_a_criterion_of_the_rubric(tmp_path: Path) -> None:
    lines = [json.dumps({"answer": f"a{n}", "score": n % 2 == 0, "style": n}) for n in range(10)]
    labels = read_labels(written(tmp_path, lines, "labels.jsonl"), ["style"])
    assert [label.score for label in labels[:2]] == [1, 0]
    assert labels[3].criteria == {"style": 3}


def test_words_of_a_judge_are_no_criterion(tmp_path: Path) -> None:
    header = "answer,score,judge_score,reason,judge_reason,style,judge_style"
    lines = [header, *(f"a{n},{n},{n},good,because,{n},{n}" for n in range(10))]
    assert read_labels(written(tmp_path, lines))[3].criteria == {"style": 3}
    with pytest.raises(DataError, match="field 'reason': holds 'good' where a number is expected"):
        read_labels(written(tmp_path, lines), ["reason"])
    with pytest.raises(DataError, match="field 'style': holds 'x' where a number is expected"):
        read_labels(written(tmp_path, [*lines, "a,1,1,good,because,x,3"]))


def test_other_names_of_columns(tmp_path: Path) -> None:
    file = written(tmp_path, ["q,a,mark", *rows()])
    labels = read_labels(file, columns={"prompt": "q", "answer": "a", "score": "mark"})
    assert labels[1].prompt == "Question 1?"


@pytest.mark.parametrize(("written_as", "score"), [("4,5", 4.5), (".5", 0.5), (",5", 0.5), ("4.", 4), ("+1e1", 10)])
def test_numbers_as_people_and_programs_write_them(written_as: str, score: float) -> None:
    assert number(written_as) == score


@pytest.mark.parametrize("value", [".", ",", "1,000,000", "4/5", "4 %", "nan", 10**400, [4], float("-inf")])
def test_what_is_no_number_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="where a number is expected"):
        number(value)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([HEADER, *rows(9)], "9 answers have a person's score: at least 10 are needed, and 30 to 50 are good"),
        ([HEADER, *rows(1)], "1 answer has a person's score"),
        ([HEADER, *rows(score="")], "0 answers have a person's score"),
        ([HEADER, *rows(score="4")], "all people's scores are 4: a ranking needs different ones"),
        ([HEADER, *rows(), "Question 3?,Answer 3,9"], "line 14 repeats the answer of line 5: keep one row"),
        ([HEADER, *rows(), "q,a,good"], ":14: field 'score': holds 'good' where a number is expected"),
        ([HEADER, *rows(), "q,a,nan"], "holds 'nan' where a number is expected"),
        ([HEADER, *rows(), "q,a,1e999"], "holds inf where a number is expected"),
        (["prompt,answer", "q,a"], "there is no column score or human_score (columns: answer, prompt)"),
        (["prompt,score", "q,1"], "no column answer or prediction or response"),
        (
            ["answer,prediction,score", "a,b,1"],
            "could both be the answer: name one with --columns",
        ),
        ([HEADER], "has no rows"),
    ],
)
def test_a_file_that_says_nothing_is_refused(tmp_path: Path, lines: list[str], said: str) -> None:
    with pytest.raises(DataError) as caught:
        read_labels(written(tmp_path, lines))
    assert said in str(caught.value)
    assert "labels.csv" in str(caught.value)
