"""The attempts at one verdict: when to ask again, how long to wait, and when to give up."""

from __future__ import annotations

import dataclasses
import queue
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from lorahydra.errors import JudgeSetupError
from lorahydra.judges.base import Fault, JudgeCase, JudgeFault, JudgePrompt, JudgeReply, Verdict
from lorahydra.judges.copied import mask_scores
from lorahydra.judges.parsing import read_verdict
from lorahydra.judges.session import SingleSession

__all__ = ["JudgeCall", "ask_for_verdict"]

PATIENCE = 5
"""An example is given up after this many times `judge.timeout`."""
FIRST_WAIT, LONGEST_WAIT = 0.5, 10.0
"""Seconds between attempts when the service does not name a time; doubled each time."""
GROWTH_OF_TRUNCATED_REPLIES = 4
LONGEST_MESSAGE = 300
LONGEST_MODEL = 200
COPIES_SHOWN = 2
"""After this many replies without a verdict, the judge no longer sees scores that stand in the texts."""
GRACE = 1.1
"""A call is abandoned after this many times `judge.timeout`: the SDK's own limit comes first."""

# Not the global generator, whose state belongs to the seeded experiment.
_jitter = random.Random()


@dataclass(frozen=True)
class JudgeCall:
    """One call of a judge, for the record; the judge's secrets are taken out of it."""

    prompt: JudgePrompt
    reply: JudgeReply | None
    """None when the call brought none."""
    verdict: Verdict | None
    error: JudgeFault | JudgeSetupError | None
    """Why there is no verdict; `JudgeSetupError` when the judge itself crashed."""
    attempt: int
    """1 for the first call for an example."""
    start_ns: int
    """Nanoseconds since the epoch."""
    seconds: float
    cost: float
    """Money, by the prices of the config."""
    judge: str = ""
    """Who was asked."""
    model: str = ""
    """The model that was asked, or if it replied, the one that says it is."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens sent, as far as the service says."""
        return self.reply.prompt_tokens if self.reply else 0

    @property
    def completion_tokens(self) -> int:
        """Tokens received, as far as the service says."""
        return self.reply.completion_tokens if self.reply else 0


def ask_for_verdict(
    session: SingleSession, case: JudgeCase, *, stop: threading.Event, record: Callable[[JudgeCall], None]
) -> Verdict | None:
    """Ask about one case until there is a verdict or no hope of one; None if `stop` was set before there was one.

    Raises:
        JudgeFault: The last one, when there is no hope left.
        JudgeBudgetError: The next call might cost more than is left of `judge.max_cost`.
        JudgeSetupError: The judge crashed.
    """
    config = session.config
    masked, max_output_tokens = mask_scores(case, session.writer.criteria), config.max_output_tokens
    attempt = unreadable = counted = 0
    seconds = 0.0  # in calls and between them; waiting for a slot is not counted
    while True:
        attempt += 1
        shown = masked if unreadable >= COPIES_SHOWN else case
        prompt = session.writer.write(case, max_output_tokens, remind=unreadable > 0, shown=shown)
        call = _call(session, prompt, shown, attempt, stop)
        if call is None:
            return None
        record(call)
        if call.error is None:
            return call.verdict
        if isinstance(call.error, JudgeSetupError):
            raise call.error
        fault = call.error.fault
        unreadable += fault is Fault.UNPARSEABLE
        # An answer must not escape judgement by bringing a verdict along: it is always asked about without that, too.
        copied = fault is Fault.UNPARSEABLE and masked is not case and unreadable <= COPIES_SHOWN
        counted += fault is not Fault.RATE_LIMIT and not copied
        if fault is Fault.TRUNCATED:
            max_output_tokens = min(2 * max_output_tokens, config.max_output_tokens * GROWTH_OF_TRUNCATED_REPLIES)
        wait = _wait_after(call.error, attempt, session)
        seconds += call.seconds + wait
        hopeless = not fault.is_transient or counted > config.max_retries or seconds > PATIENCE * config.timeout
        if hopeless or stop.is_set():
            raise call.error
        stop.wait(wait)


def _wait_after(fault: JudgeFault, attempt: int, session: SingleSession) -> float:
    """Seconds to wait: exponential, with jitter, and never less than the service asks for.

    After a rate limit, no other call of the session begins meanwhile either, unless nobody waits for so long: the next
    call then shows whether the judge is unavailable.
    """
    longest = min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** (attempt - 1))
    wait = max(_jitter.uniform(longest / 2, longest), fault.retry_after or 0.0)
    if fault.fault is Fault.RATE_LIMIT and wait <= PATIENCE * session.config.timeout:
        session.limiter.pause(wait)
    return wait


def _call(
    session: SingleSession, prompt: JudgePrompt, shown: JudgeCase, attempt: int, stop: threading.Event
) -> JudgeCall | None:
    """Make one call within the limits and the budget; None when judging was stopped before it."""
    reply: JudgeReply | None = None
    verdict: Verdict | None = None
    error: JudgeFault | JudgeSetupError | None = None
    reserved = session.budget.reserve(prompt)
    try:
        with session.limiter.slot(stop):
            if stop.is_set():
                return None
            start_ns, started = time.time_ns(), time.monotonic()
            try:
                reply = _checked(session, _ask_in_time(session, prompt))
                verdict = read_verdict(reply, session.config.rubric, shown)
            except JudgeFault as fault:
                if reply is None and fault.reply is not None:
                    reply = _checked(session, fault.reply)
                error = _redacted(session, fault)
            except Exception as crash:
                error = session.crashed(crash)
            seconds = time.monotonic() - started
    finally:
        cost = session.budget.settle(reserved, prompt, reply)
    # Redacted after the verdict was read: JSON may have hidden a secret behind its escapes.
    if reply is not None:
        session.last_reply = time.monotonic()
        reply = dataclasses.replace(reply, text=session.redact(reply.text))
    if verdict is not None:
        verdict = dataclasses.replace(
            verdict,
            reasoning=session.redact(verdict.reasoning),
            raw_reply=session.redact(verdict.raw_reply),
            prompt_version=session.prompt_version,
            latency=seconds,
        )
    model = reply.model if reply is not None else session.judge.model
    return JudgeCall(prompt, reply, verdict, error, attempt, start_ns, seconds, cost, session.label, model)


def _ask_in_time(session: SingleSession, prompt: JudgePrompt) -> JudgeReply:
    """Call the judge, and abandon the call when it takes too long.

    An SDK's limit is for each read from the connection, so a service that sends a byte now and then could hold a call
    for ever.
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


def _checked(session: SingleSession, reply: JudgeReply) -> JudgeReply:
    """The reply with what a service may have left out or mistyped put right."""
    counts = (reply.prompt_tokens, reply.completion_tokens)
    sent, received = (count if type(count) is int and count >= 0 else 0 for count in counts)
    model = session.redact(str(reply.model))[:LONGEST_MODEL]
    return dataclasses.replace(reply, model=model, prompt_tokens=sent, completion_tokens=received)


def _redacted(session: SingleSession, fault: JudgeFault) -> JudgeFault:
    # Cut after it was redacted: half of a key would not be recognised any more.
    message = session.redact(fault.message)
    if len(message) > LONGEST_MESSAGE:
        message = f"{message[:LONGEST_MESSAGE]}…"
    if fault.retry_after:
        message += f"; it asks to wait {fault.retry_after:g} s"
    return JudgeFault(fault.fault, message.removeprefix("; "), retry_after=fault.retry_after)
