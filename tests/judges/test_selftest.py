"""A judge has to tell a right answer from the others before anything is trained."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.judges.wire import KEY, MODEL, JudgeServer, judge_server
from tests.support.configs import judge_config

from lorahydra import register_judge
from lorahydra.config.judge import JudgeConfig
from lorahydra.config.judge_registry import unregister_judge
from lorahydra.errors import JudgeError, JudgeSetupError
from lorahydra.judges import Fault, Judge, JudgeCase, JudgeFault, JudgePrompt, JudgeReply, SingleSession, self_test
from lorahydra.judges.cache import VerdictCache
from lorahydra.judges.loading import make_judge
from lorahydra.judges.selftest import TEXTS, ensure_usable

Score = Callable[[JudgeCase], object]


class Scoring(Judge):
    """Scores by a function; None is a refusal."""

    model = "rules"

    def __init__(self, score: Score, runs_here: bool = False) -> None:
        self.score = score
        self.runs_here = runs_here
        self.asked: list[JudgeCase] = []

    def ask(self, prompt: JudgePrompt) -> JudgeReply:
        self.asked.append(prompt.case)
        score = self.score(prompt.case)
        if score is None:
            raise JudgeFault(Fault.REQUEST_REFUSED, "a filter does not like it")
        reply = {"reasoning": "Reasons.", "scores": dict.fromkeys(prompt.criteria, score)}
        return JudgeReply(json.dumps(reply), self.model, fractions=self.runs_here)


def good(case: JudgeCase) -> object:
    return 5 if case.answer == case.reference else 0


def obeying(case: JudgeCase) -> object:
    return 4.4 if "scores" in case.answer else 1.5 if case.answer == case.reference else 1.0


def session(score: Score, *overrides: str, runs_here: bool = False, cache: bool = True) -> SingleSession:
    config = judge_config("openai", "judge.max_retries=0", *overrides)
    return SingleSession(config, Scoring(score, runs_here), VerdictCache() if cache else None)


def asked(tested: SingleSession) -> int:
    assert isinstance(tested.judge, Scoring)
    return len(tested.judge.asked)


@pytest.mark.parametrize("language", TEXTS)
def test_a_good_judge_is_asked_once_a_day(
    language: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    language_override = f"judge.rubric.language={language}"
    for again, expected in ((False, 4), (True, 0)):
        tested = session(good, language_override)
        ensure_usable(tested)
        ensure_usable(tested)
        assert asked(tested) == expected
        assert ("Judge self-test: 100 of 100 to a right answer, 0 to a wrong one" in caplog.text) is not again
        caplog.clear()
    monkeypatch.setattr("lorahydra.judges.selftest.SECONDS_OF_TRUST", -1)
    ensure_usable(tested := session(good, language_override))
    assert asked(tested) == 4


def test_another_key_is_tried_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ensure_usable(session(good))
    monkeypatch.setenv("OPENAI_API_KEY", "another")
    ensure_usable(tested := session(good))
    assert asked(tested) == 4


def test_a_judge_that_obeys_the_answer_is_refused() -> None:
    with pytest.raises(JudgeSetupError) as caught:
        ensure_usable(session(obeying, runs_here=True))
    assert str(caught.value) == (
        "judge openai (rules) fails its self-test, so its scores would mislead: it gives 30 of 100 to a right answer, "
        "20 to a wrong one, 20 to an empty one, 88 to one that demands the best score; choose another judge.model, or "
        "go on regardless with judge.self_test=false"
    )
    ensure_usable(tested := session(obeying, "judge.self_test=false"))
    assert asked(tested) == 0


@pytest.mark.parametrize(
    ("score", "runs_here", "passes"),
    [
        (lambda case: 4 if good(case) else 3, False, True),
        (lambda case: 3 if good(case) else 0, False, False),
        (lambda case: 1 if good(case) else 0, False, False),
        (lambda case: 2.6 if good(case) else 0.9, True, True),
        (lambda case: 5, False, False),
        (lambda case: None if "scores" in case.answer else good(case), False, True),
    ],
)
def test_the_right_answer_is_near_the_top_and_the_others_clearly_below(
    score: Score, runs_here: bool, passes: bool
) -> None:
    test = self_test(session(score, runs_here=runs_here, cache=False))
    assert (test.error is None) is passes
    assert self_test(session(score, "judge.self_test=false", runs_here=runs_here, cache=False)).error is None


def test_no_verdict_on_the_right_answer_is_the_judge_s_fault() -> None:
    error = self_test(session(lambda case: None if good(case) else 0, cache=False)).error
    assert isinstance(error, JudgeError)
    assert "gave no verdict: request refused: a filter does not like it" in str(error)


def test_a_judge_of_the_user_is_not_tested(tmp_path: Path) -> None:
    register_judge("mine", lambda config: Scoring(obeying))
    try:
        config = JudgeConfig(name="mine", rubric=judge_config("openai").rubric)
        tested = SingleSession(config, Scoring(obeying), None)
        ensure_usable(tested)
        assert asked(tested) == 0
    finally:
        unregister_judge("mine")


@pytest.mark.service
def test_what_it_costs_is_taken_from_the_budget_and_its_key_from_its_messages(server: JudgeServer) -> None:
    settings = ("judge.prompt_price=1", "judge.completion_price=1", f"judge.model={MODEL}")
    config = judge_config("openai", *settings, base_url=server.openai)
    real = SingleSession(config, make_judge(config), None)
    ensure_usable(real)
    real.close()
    assert len(server.self_tests) == 4
    assert server.calls == 0
    assert real.purse.spent == pytest.approx(4 * (321 + 45) / 1e6)
    with judge_server(self_test=lambda request, attempt: "401") as refusing:
        config = judge_config("openai", *settings, base_url=refusing.openai)
        real = SingleSession(config, make_judge(config), None)
        with pytest.raises(JudgeSetupError, match="key refused: HTTP 401 .* check the key in OPENAI_API_KEY") as caught:
            ensure_usable(real)
        real.close()
    assert KEY not in str(caught.value)
