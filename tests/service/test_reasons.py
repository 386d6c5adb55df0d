"""Programs get codes and values for what is said in English."""

from __future__ import annotations

from lorahydra.service.errors import InvalidError, Message
from lorahydra.service.reasons import coded, reason_of, refusal_answer
from lorahydra.service.views import Reason


def test_a_known_sentence_has_a_code_and_its_values() -> None:
    assert reason_of("there is no project 7") == Reason("ask.no_project", {"n": "7"})
    within = Reason("error.timed_out", {})
    known = Reason("judge.unavailable", {"judge": "gemini", "maybe": within})
    assert reason_of("LLMJudgeError: judge gemini is unavailable: timed out") == known
    other = reason_of("judge gemini is unavailable: the moon is full")
    assert other == Reason("judge.unavailable", {"judge": "gemini", "maybe": "the moon is full"})
    assert reason_of(Message("Three rows.", "few_test_rows", n=3)) == Reason("few_test_rows", {"n": 3})
    assert reason_of("nobody says this") is None


def test_a_report_and_a_refusal_have_the_codes_of_their_sentences() -> None:
    problems = [{"line": 3, "field": "answer", "message": "is empty"}, {"line": 4, "field": None, "message": "odd"}]
    report = coded({"ok": False, "problems": problems, "warnings": ["odd"]})
    assert [(one["code"], one["params"]) for one in report["problems"]] == [("data.is_empty", {}), (None, {})]
    assert report["warning_reasons"] == [{"code": None, "params": {}}]
    assert coded({}) == {}
    refusal = InvalidError("rows.csv line 3 field answer: is empty (and 2 more)", "bad_dataset")
    refusal.report = {"problems": problems}
    answer = refusal_answer(refusal, "/api/v1/projects/1/datasets").body
    assert b'"code":"at.' in answer
    assert answer.count(b'"code":"data.is_empty"') == 2
