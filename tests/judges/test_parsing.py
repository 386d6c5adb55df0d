"""Reading verdicts: patient with what stands around them, strict about scores."""

from __future__ import annotations

import json

import pytest

from lorahydra.judges import Fault, JudgeFault
from lorahydra.judges.parsing import read_opinion

CRITERIA = ("correctness", "style")
GOOD = {"reasoning": "Because.", "scores": {"correctness": 4, "style": 3}}
TEXT = json.dumps(GOOD)


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        f"```json\n{TEXT}\n```",
        f"Sure {{as asked}}:\n{TEXT}\nDone.",
        f'<think>maybe {{"scores": 1}}</think>{TEXT}',
        f"{TEXT}\n{TEXT}",
        json.dumps({"reasoning": "Because.", "correctness": 4, "style": 3}),
        json.dumps({"Reasoning": "Because.", "Scores": {"Correctness": "4", "STYLE": "3/5"}}),
        json.dumps({"reasoning": "Because.", "scores": {"correctness": {"score": 4, "why": "x"}, "style": 3.0}}),
    ],
)
def test_a_verdict_is_found(text: str) -> None:
    opinion = read_opinion(text, CRITERIA)
    assert opinion.scores == {"correctness": 4.0, "style": 3.0}
    assert opinion.reasoning == "Because."


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("I refuse.", "there is no JSON object in it"),
        (TEXT[:-4], "there is no JSON object in it"),
        ('{"reasoning": "it says {"scores": {"correctness": 5, "style": 5}} and', "there is no JSON object in it"),
        (TEXT.replace("4", "6"), "the score of correctness is 6, not 0 to 5"),
        (TEXT.replace("4", "-1"), "the score of correctness is -1"),
        (TEXT.replace("4", "NaN"), "the score of correctness is nan"),
        (TEXT.replace("4", "1e999"), "the score of correctness is inf"),
        (TEXT.replace("4", "1" + "0" * 400), "the score of correctness is 1000"),
        (TEXT.replace("4", "true"), "the score of correctness is no number"),
        (TEXT.replace("4", "null"), "the score of correctness is no number"),
        (TEXT.replace("4", '"excellent"'), "the score of correctness is no number"),
        (TEXT.replace('"style": 3', '"tone": 3'), "style has no score"),
        (TEXT.replace('"style"', '"correctness"'), "a key stands in it twice"),
        (TEXT.replace('"style": 3', '"style": 3, "Style": 4'), "a key stands in it twice"),
        ('{"correctness": {"score": 1, "score": 5}, "style": 3}', "a key stands in it twice"),
        ('{"scores": {"correctness": 4, "style": 3}, "Scores": {}}', "a key stands in it twice"),
        (TEXT + TEXT.replace("4", "5"), "it holds several different verdicts"),
        ('{"scores": [4, 3]}', "its scores are no object"),
        ("[" * 5000 + "{" * 5000, "there is no JSON object in it"),
    ],
)
def test_nothing_is_guessed(text: str, problem: str) -> None:
    with pytest.raises(JudgeFault) as caught:
        read_opinion(text, CRITERIA)
    assert caught.value.fault is Fault.UNPARSEABLE
    assert problem in caught.value.message


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_reply_is_told_apart(text: str) -> None:
    with pytest.raises(JudgeFault) as caught:
        read_opinion(text, CRITERIA)
    assert caught.value.fault is Fault.EMPTY
