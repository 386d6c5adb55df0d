"""The attempts for one answer: when to ask again, how long to wait, when to give up."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable

import tenacity

from lorahydra.judges.base import Fault, JudgeCase, JudgeFault, JudgePrompt, JudgeReply, Verdict
from lorahydra.judges.judgement import JudgeCall
from lorahydra.judges.quoting import without_scores
from lorahydra.judges.session import JudgeSession

__all__ = ["LONGEST_WAIT", "Asking", "NoMoneyError", "StoppedError"]

PATIENCE = 5
"""An example is given up after this many times `judge.timeout`."""
FIRST_WAIT, LONGEST_WAIT = 0.5, 10.0
"""Seconds between attempts when the service does not name a time; doubled each time."""
GROWTH_OF_CUT_REPLIES = 4
LONGEST_MESSAGE = 300
LONGEST_MODEL = 200
COPIES_SHOWN = 2
"""After so many replies without a verdict, scores that stand in the texts are not shown any more."""
GRACE = 1.1
"""A call may take so many times `judge.timeout` before it is left alone: the SDK's own limit comes first."""

# Not the global one, whose state belongs to the seeded experiment.
_jitter = random.Random()


class NoMoneyError(Exception):
    """The next call might cost more than is left."""


class StoppedError(Exception):
    """Judging was stopped before the call."""


class Asking:
    """Asks for the verdict on one case until there is one, or no hope.

    Args:
        session: The judge and its limits.
        case: What is judged.
        stop: Set when no further call shall begin.
        record: Told of every call and its cost.
        claim: Called before each call, so that no other process asks the same.
        sleep: Waits between attempts.
    """

    def __init__(
        self,
        session: JudgeSession,
        case: JudgeCase,
        stop: threading.Event,
        record: Callable[[JudgeCall, float], None],
        claim: Callable[[], None],
        sleep: Callable[[float], None],
    ) -> None:
        self._session = session
        self._case = case
        self._stop = stop
        self._record = record
        self._claim = claim
        self._sleep = sleep
        self._max_output_tokens = session.config.max_output_tokens
        self._attempts = 0
        self._counted = 0
        """Faults that `judge.max_retries` limits; being told to wait is not one of them."""
        self._unreadable = 0
        """Replies without a verdict."""
        self._without_scores = without_scores(case, session.writer.criteria)
        """The case without scores that the judge could copy; `case` itself where it holds none."""
        self._seconds = 0.0
        """In calls and between them; waiting for one's turn is not counted."""

    def verdict(self) -> Verdict:
        """Ask.

        Raises:
            JudgeFault: The last one, when hope is lost.
            NoMoneyError: `judge.max_cost` is spent.
            StoppedError: Judging was stopped meanwhile.
        """
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(lambda error: isinstance(error, JudgeFault) and error.fault.may_pass),
            wait=self._seconds_to_wait,
            stop=self._is_hopeless,
            sleep=self._sleep,
            reraise=True,
        )
        verdict: Verdict = retrying(self._once)
        return verdict

    def _once(self) -> Verdict:
        """Make one call."""
        session = self._session
        shown = self._without_scores if self._unreadable >= COPIES_SHOWN else self._case
        prompt = session.writer.write(self._case, self._max_output_tokens, remind=self._unreadable > 0, shown=shown)
        reserved = session.budget.reserve(prompt)
        if reserved is None:
            raise NoMoneyError
        reply = verdict = fault = None
        begun_ns = None
        try:
            with session.limiter.slot(self._stop):
                if self._stop.is_set():
                    raise StoppedError
                self._claim()
                self._attempts += 1
                begun_ns, begun = time.time_ns(), time.monotonic()
                reply = self._plain(_in_time(session, prompt))
                verdict = session.verdict(reply, shown, time.monotonic() - begun)
                return verdict
        except JudgeFault as error:
            fault = self._understood(error)
            reply = fault.reply
            raise fault from None
        except Exception as error:
            fault = JudgeFault(Fault.UNPARSEABLE, self._session.redact(f"{type(error).__name__}: {error}"))
            raise
        finally:
            cost = session.budget.settle(reserved, prompt, reply)
            if begun_ns is not None:
                self._seconds += time.monotonic() - begun
                self._record(self._call(prompt, reply, verdict, fault, begun_ns), cost)
            if reply is not None:
                session.last_reply = time.monotonic()

    def _understood(self, fault: JudgeFault) -> JudgeFault:
        """The fault without secrets, after drawing the lessons for the next attempt."""
        self._unreadable += fault.fault is Fault.UNPARSEABLE
        # An answer that holds a verdict must not escape judgement by it: it is always asked about without that, too.
        copied = fault.fault is Fault.UNPARSEABLE and self._without_scores is not self._case
        self._counted += fault.fault is not Fault.RATE_LIMIT and not (copied and self._unreadable <= COPIES_SHOWN)
        if fault.fault is Fault.TRUNCATED:
            most = self._session.config.max_output_tokens * GROWTH_OF_CUT_REPLIES
            self._max_output_tokens = min(2 * self._max_output_tokens, most)
        # Cut after it was cleaned: a half of a key is not found any more.
        message = _cut(self._session.redact(fault.message))
        if fault.retry_after:
            message += f"; it asks to wait {fault.retry_after:g} s"
        reply = self._plain(fault.reply) if fault.reply is not None else None
        return JudgeFault(fault.fault, message.removeprefix("; "), retry_after=fault.retry_after, reply=reply)

    def _plain(self, reply: JudgeReply) -> JudgeReply:
        """The reply with what a sloppy service may have left out or mistyped put right."""
        return JudgeReply(
            text=reply.text,
            model=self._session.redact(str(reply.model))[:LONGEST_MODEL],
            prompt_tokens=_count(reply.prompt_tokens),
            completion_tokens=_count(reply.completion_tokens),
            fractions=reply.fractions,
        )

    def _call(
        self,
        prompt: JudgePrompt,
        reply: JudgeReply | None,
        verdict: Verdict | None,
        fault: JudgeFault | None,
        begun_ns: int,
    ) -> JudgeCall:
        return JudgeCall(
            prompt=prompt,
            model=reply.model if reply else self._session.judge.model,
            reply=self._session.redact(reply.text) if reply else None,
            score=verdict.score if verdict else None,
            fault=str(fault) if fault else None,
            attempt=self._attempts,
            start_ns=begun_ns,
            end_ns=time.time_ns(),
            prompt_tokens=reply.prompt_tokens if reply else 0,
            completion_tokens=reply.completion_tokens if reply else 0,
        )

    def _seconds_to_wait(self, state: tenacity.RetryCallState) -> float:
        """Exponential, with jitter, and never less than the service asks for."""
        longest = min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** (state.attempt_number - 1))
        wait = _jitter.uniform(longest / 2, longest)
        fault = state.outcome.exception() if state.outcome else None
        if isinstance(fault, JudgeFault):
            wait = max(wait, fault.retry_after or 0.0)
            if fault.fault is Fault.RATE_LIMIT:
                self._session.limiter.pause(min(wait, PATIENCE * self._session.config.timeout))
        self._seconds += wait
        return wait

    def _is_hopeless(self, state: tenacity.RetryCallState) -> bool:
        """Whether to give the case up; tenacity asks after `_seconds_to_wait`."""
        config = self._session.config
        too_late = self._seconds > PATIENCE * config.timeout
        return self._counted > config.max_retries or too_late or self._stop.is_set()


def _in_time(session: JudgeSession, prompt: JudgePrompt) -> JudgeReply:
    """Make a call, and give it up when it takes too long.

    An SDK's limit is for each read from the connection, so that a service which sends a byte now and then could hold
    a call for ever.
    """
    if session.judge.runs_here:
        return session.judge.ask(prompt)
    ended: queue.SimpleQueue[JudgeReply | BaseException] = queue.SimpleQueue()

    def call() -> None:
        try:
            ended.put(session.judge.ask(prompt))
        except BaseException as error:
            ended.put(error)

    threading.Thread(target=call, name="lorahydra-judge-call", daemon=True).start()
    try:
        outcome = ended.get(timeout=session.config.timeout * GRACE)
    except queue.Empty:
        raise JudgeFault(Fault.TIMEOUT, f"within {session.config.timeout:g} s") from None
    if isinstance(outcome, Exception):
        raise outcome
    if isinstance(outcome, BaseException):
        # SystemExit and the like would silently end the thread that asks.
        raise RuntimeError(f"{type(outcome).__name__}: {outcome}")
    return outcome


def _cut(message: str) -> str:
    return message if len(message) <= LONGEST_MESSAGE else f"{message[:LONGEST_MESSAGE]}…"


def _count(value: object) -> int:
    return value if type(value) is int and value >= 0 else 0
