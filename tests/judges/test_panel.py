"""The mean of several judges: who is asked, what is kept, what a fault of one of them does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tests.judges.wire import MODEL, JudgeServer, Request, judge_server
from tests.support.configs import composed

from lorahydra.config.judge_registry import register_judge, unregister_judge
from lorahydra.errors import JudgeBudgetError, JudgeError, JudgeSetupError
from lorahydra.judges import (
    Fault,
    Judge,
    JudgeCase,
    JudgeFault,
    JudgePrompt,
    JudgeReply,
    JudgeSession,
    loading,
    make_session,
    ready_session,
    start_judging,
)
from lorahydra.judges.cache import VerdictCache

pytestmark = [pytest.mark.service]

CASES = [JudgeCase(f"question {n}", f"reference {n}", f"answer {n}") for n in range(6)]


def overrides(server: JudgeServer, *more: str) -> list[str]:
    return [
        *(
            "judge=panel",
            "judge.judges=[gemini,mine]",
            "judges.mine.name=openai",
            "judges.mine.api_key_env=OPENAI_API_KEY",
        ),
        *(f"judges.gemini.model={MODEL}", f"judges.gemini.base_url={server.gemini}"),
        *(f"judges.mine.model={MODEL}", f"judges.mine.base_url={server.openai}", *more),
    ]


@contextmanager
def session_on(server: JudgeServer, *more: str, cache: VerdictCache | None = None) -> Iterator[JudgeSession]:
    session = make_session(composed(*overrides(server, *more)).judge, cache)
    try:
        yield session
    finally:
        session.close()


def test_the_score_is_the_mean_and_the_verdicts_of_each_are_kept(server: JudgeServer) -> None:
    alone = make_session(
        composed("judge=openai", f"judge.model={MODEL}", f"judges.openai.base_url={server.openai}").judge,
        VerdictCache(),
    )
    of_openai = start_judging(alone, CASES).wait()
    alone.close()
    with session_on(server, cache=VerdictCache()) as session:
        together = start_judging(session, CASES, repeats=1).wait()
        again = start_judging(session, CASES).wait()
    assert [request.service for request in server.requests].count("openai") == 6, "its verdicts were kept"
    assert server.calls == 12
    gemini, mine = together.members["gemini"], together.members["mine"]
    assert mine.scores == of_openai.scores
    assert together.scores == [pytest.approx((a + b) / 2) for a, b in zip(gemini.scores, mine.scores, strict=True)]
    assert again.scores == together.scores
    assert (again.cache_hits, len(again.calls)) == (12, 0)
    assert (together.coverage, together.judged, together.failures) == (1, 6, 0)
    assert together.models == ["judge-model-001 + judge-model-001"]
    assert str(together.reasons[0]).startswith("gemini: Вердикт")
    assert "\nmine: Вердикт" in str(together.reasons[0])
    assert {call.judge for call in together.calls} == {"gemini"}


def test_an_example_counts_only_with_a_verdict_of_each() -> None:
    def plan(request: Request, attempt: int) -> str:
        return "blocked" if request.service == "openai" and "question 2" in request.user else "good"

    with judge_server(plan) as server, session_on(server, "judge.max_retries=0") as session:
        judgement = start_judging(session, [*CASES, None], repeats=2).wait()
    assert [score is None for score in judgement.scores] == [False, False, True, False, False, False, True]
    assert judgement.missing[2] == "mine: blocked by the service: content_filter"
    assert judgement.chosen == 6
    assert judgement.coverage == pytest.approx(5 / 6)
    assert judgement.members["gemini"].coverage == 1
    assert judgement.members["mine"].coverage == pytest.approx(5 / 6)
    assert judgement.failures == 2


def test_a_judge_that_is_set_up_wrongly_ends_judging() -> None:
    def plan(request: Request, attempt: int) -> str:
        return "401" if request.service == "openai" else "good"

    with judge_server(plan, delay=0.05) as server:
        settings = ("judges.gemini.concurrency=1", "judges.mine.concurrency=1")
        with session_on(server, *settings) as session:
            judgement = start_judging(session, CASES * 20).wait()
            assert isinstance(judgement.error, JudgeSetupError)
            assert "judge mine: key refused" in str(judgement.error)
            assert server.calls < 12, "the others are not asked in vain"
    assert judgement.coverage == 0


LET_GO = threading.Event()


class HangingJudge(Judge):
    """A judge that says nothing until it is let go."""

    model = "hangs"

    def __init__(self, config: object) -> None:
        self.let_go = LET_GO

    def ask(self, prompt: JudgePrompt) -> JudgeReply:
        self.let_go.wait(60)
        self.let_go.set()
        raise JudgeFault(Fault.EMPTY)


class RefusingJudge(HangingJudge):
    """A judge whose key is refused while another one is being asked."""

    def ask(self, prompt: JudgePrompt) -> JudgeReply:
        raise JudgeFault(Fault.KEY_REFUSED)


def test_nobody_waits_for_a_judge_that_hangs_when_another_one_has_ended_judging() -> None:
    register_judge("hanging", HangingJudge)
    register_judge("refusing", RefusingJudge)
    try:
        config = composed("judge=panel", "judge.judges=[hanging,refusing]").judge
        judgement = start_judging(make_session(config, None), CASES).wait()
        assert "judge refusing: key refused" in str(judgement.error)
        assert not LET_GO.is_set(), "no call of the other one has ended"
    finally:
        LET_GO.set()
        unregister_judge("hanging")
        unregister_judge("refusing")


def test_the_judges_share_the_money(server: JudgeServer) -> None:
    prices = ("judges.gemini.prompt_price=100", "judges.mine.prompt_price=100", "judge.max_cost=0.4")
    with session_on(server, *prices, "judges.gemini.concurrency=1", "judges.mine.concurrency=1") as session:
        judgement = start_judging(session, CASES).wait()
        assert isinstance(judgement.error, JudgeBudgetError)
        assert 0 < session.purse.spent <= 0.4
        assert session.purse.spent == pytest.approx(sum(call.cost for call in judgement.calls))


def test_each_judge_is_tested() -> None:
    def plan(request: Request, attempt: int) -> str:
        return "503" if request.service == "openai" else "good"

    with judge_server(self_test=plan) as server:
        config = composed(*overrides(server, "judge.max_retries=0")).judge
        with pytest.raises(JudgeError, match="judge mine is unavailable"):
            ready_session(config)
        server.plan_of_self_test = lambda request, attempt: "good"
        session = ready_session(config)
        assert session is not None
        assert session.model == f"{MODEL} + {MODEL}"
        assert session is ready_session(config)
        assert {request.service for request in server.self_tests} == {"gemini", "openai"}
        loading.close_session()


def test_a_key_goes_only_to_the_address_of_its_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "my-own-key-771")
    with judge_server() as one, judge_server() as other:
        more = (f"judges.mine.base_url={other.openai}", "judges.mine.api_key_env=MY_KEY", "judge.max_retries=0")
        with session_on(one, *more) as session:
            start_judging(session, CASES[:1]).wait()
        sent = {server.url: str([request.headers for request in server.requests]) for server in (one, other)}
    assert "my-own-key-771" in sent[other.url]
    assert "my-own-key-771" not in sent[one.url]
    assert "x-goog-api-key" not in sent[other.url]
