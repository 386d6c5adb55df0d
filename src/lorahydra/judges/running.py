"""Many cases judged at once by threads, with the cache in front, and an end when it makes no sense to go on."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lorahydra.errors import JudgeBudgetError, JudgeError, JudgeSetupError, LorahydraError
from lorahydra.judges.asking import LONGEST_WAIT, Asking, NoMoneyError, StoppedError
from lorahydra.judges.base import Fault, JudgeCase, JudgeFault, Verdict
from lorahydra.judges.cache import new_owner
from lorahydra.judges.judgement import CaseVerdicts, JudgeCall, Judgement, Usage
from lorahydra.judges.session import JudgeSession
from lorahydra.utils.progress import Progress

__all__ = ["RunningJudgement", "start_judging"]

REFUSALS_TO_STOP = 3
"""Refused requests in a row that show it is not the examples' fault."""
OUTAGES_TO_STOP = 2
"""Examples given up in a row, with no reply to anybody meanwhile, that show that the service is away."""
SECONDS_TO_END = 1.0
"""How long calls that are running when judging ends early are waited for."""
SECONDS_BETWEEN_LOOKS = 0.2
"""At the verdict that another process has said it will ask for."""


@dataclass
class _Task:
    """One verdict that is wanted, for every case that is the same."""

    key: str
    case: JudgeCase
    outcome: Verdict | str | None = None
    """The verdict, or why there is none; None while it is open."""


def start_judging(session: JudgeSession, cases: Sequence[JudgeCase], repeats: int = 1) -> RunningJudgement:
    """Begin to judge; a judge that computes on this machine begins when the result is asked for.

    Args:
        session: The judge, its limits and its cache.
        cases: What is judged; equal ones are judged once.
        repeats: Verdicts for each case.
    """
    return RunningJudgement(session, cases, repeats)


class RunningJudgement:
    """Cases that are being judged; made by `start_judging`.

    Args:
        session: The judge, its limits and its cache.
        cases: What is judged; equal ones are judged once.
        repeats: Verdicts for each case.
    """

    def __init__(self, session: JudgeSession, cases: Sequence[JudgeCase], repeats: int) -> None:
        self._session = session
        self._owner = new_owner()
        self._started = self._finished = time.perf_counter()
        self._keys = [[session.key(case, repeat) for repeat in range(repeats)] for case in cases]
        self._tasks: dict[str, _Task] = {}
        for case, keys in zip(cases, self._keys, strict=True):
            self._tasks |= {key: _Task(key, case) for key in keys if key not in self._tasks}
        self._open: queue.SimpleQueue[_Task] = queue.SimpleQueue()
        for task in self._tasks.values():
            self._open.put(task)
        self._ended: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._usage = Usage()
        self._calls: list[JudgeCall] = []
        self._error: LorahydraError | None = None
        self._refused_in_a_row = self._outages_in_a_row = 0
        self._threads: list[threading.Thread] = []
        if not session.judge.runs_here:
            self._start_threads()

    def result(self, progress: Progress | None = None) -> Judgement:
        """Wait for the verdicts; missing ones are part of the result, not an exception.

        Args:
            progress: Where to show how far it is.
        """
        progress = progress or Progress()
        if self._session.judge.runs_here:
            self._started = time.perf_counter()
        try:
            with progress.task("Judging", total=len(self._tasks)) as advance:
                for _ in self._tasks:
                    if self._session.judge.runs_here:
                        self._work_once()
                    self._ended.get()
                    if self._stop.is_set():
                        break
                    advance(1, "")
        finally:
            # Also on Ctrl-C: running calls end by themselves, and no new ones begin.
            self._stop.set()
        self._let_calls_end()
        return self._judgement()

    def stop(self) -> None:
        """Begin no further call."""
        self._stop.set()

    def _start_threads(self) -> None:
        for number in range(min(self._session.config.concurrency, len(self._tasks))):
            # Daemons: a call that hangs must not hold up the end of the process.
            name = f"lorahydra-judge-{number}"
            thread = threading.Thread(target=self._work, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def _let_calls_end(self) -> None:
        """Wait a moment for running calls, whose verdicts are paid for."""
        deadline = time.monotonic() + SECONDS_TO_END
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        while self._work_once():
            pass

    def _work_once(self) -> bool:
        """Take one task to its end; False when there is none."""
        try:
            task = self._open.get_nowait()
        except queue.Empty:
            return False
        try:
            task.outcome = None if self._stop.is_set() else self._outcome(task)
        except Exception as error:
            # A judge that breaks its contract, for example one of a user's own: no thread may die silently.
            message = self._session.redact(f"{type(error).__name__}: {error}")
            self._end(JudgeSetupError(f"judge {self._session.config.name} failed: {message}"))
        finally:
            self._finished = time.perf_counter()
            self._ended.put(None)
        return True

    def _outcome(self, task: _Task) -> Verdict | str | None:
        """The verdict from the cache or the judge, or why there is none."""
        cache = self._session.cache
        if cache is None:
            return self._ask(task)
        while True:
            if (known := cache.get(task.key)) is not None:
                break
            if cache.claim(task.key, self._owner, self._lease()):
                # Between the look and the claim, another process may have stored it.
                known = cache.get(task.key)
                break
            if self._stop.wait(SECONDS_BETWEEN_LOOKS):
                return None
        if known is not None:
            cache.release(task.key, self._owner)
            self._count(Usage(cache_hits=1))
            return known
        try:
            outcome = self._ask(task)
            if isinstance(outcome, Verdict):
                cache.put(task.key, self._session.config.name, outcome)
            return outcome
        finally:
            cache.release(task.key, self._owner)

    def _lease(self) -> float:
        """Seconds that a claim must hold for one call."""
        return self._session.config.timeout + LONGEST_WAIT

    def _ask(self, task: _Task) -> Verdict | str | None:
        def claim(seconds: float = 0.0) -> None:
            if self._session.cache is not None:
                self._session.cache.claim(task.key, self._owner, seconds + self._lease())

        def sleep(seconds: float) -> None:
            claim(seconds)
            self._stop.wait(seconds)

        begun = time.monotonic()
        try:
            verdict = Asking(self._session, task.case, self._stop, self._record, claim, sleep).verdict()
            with self._lock:
                self._refused_in_a_row = self._outages_in_a_row = 0
            return verdict
        except JudgeFault as fault:
            self._note_failure(fault, begun)
            return str(fault)
        except NoMoneyError:
            spent, limit = self._session.budget.spent, self._session.config.max_cost
            self._end(JudgeBudgetError(f"judge.max_cost={limit} is used up ({spent:.4f} spent): raise it to go on"))
        except StoppedError:
            pass
        return None

    def _note_failure(self, fault: JudgeFault, begun: float) -> None:
        """Find out whether it is worth going on with other examples."""
        name = self._session.config.name
        last = self._session.last_reply
        with self._lock:
            # A model on this machine refuses what is too long for it, which says nothing about the next example.
            refused = fault.fault is Fault.REQUEST_REFUSED and not self._session.judge.runs_here
            away = fault.fault.is_outage and last < begun
            self._refused_in_a_row = self._refused_in_a_row + 1 if refused else 0
            self._outages_in_a_row = self._outages_in_a_row + 1 if away else 0
            hopeless = fault.fault.ends_judging or self._refused_in_a_row >= REFUSALS_TO_STOP
            # One example may be more than a server can take; where there is no connection, the example is not to blame.
            enough = 1 if fault.fault is Fault.CONNECTION or len(self._tasks) == 1 else OUTAGES_TO_STOP
            dead = away and self._outages_in_a_row >= enough
        if hopeless:
            self._end(JudgeSetupError(f"judge {name}: {fault}{self._advice(fault.fault)}"))
        elif dead and not self._stop.is_set():
            self._end(JudgeError(f"judge {name} is away: {fault}"))

    def _advice(self, fault: Fault) -> str:
        """What the user can do about it."""
        config = self._session.config
        where = f" and judge.base_url={config.base_url}" if config.base_url else ""
        variables = " or ".join(config.key_names)
        return {
            Fault.KEY_REFUSED: f"; check the key in {variables}" if variables else "",
            Fault.MODEL_UNKNOWN: f"; check judge.model={self._session.judge.model}{where}",
            Fault.CERTIFICATE: "; name the issuer's certificate in judge.ca_bundle_file",
        }.get(fault, "")

    def _end(self, error: LorahydraError) -> None:
        """End judging early; the first reason stays."""
        with self._lock:
            self._error = self._error or error
        self._stop.set()
        self._ended.put(None)

    def _count(self, more: Usage) -> None:
        with self._lock:
            self._usage += more

    def _record(self, call: JudgeCall, cost: float) -> None:
        again = int(call.attempt > 1)
        self._count(Usage(1, 0, again, 0, call.prompt_tokens, call.completion_tokens, cost))
        with self._lock:
            self._calls.append(call)

    def _judgement(self) -> Judgement:
        outcomes = {key: task.outcome for key, task in self._tasks.items()}
        with self._lock:
            error, usage, calls = self._error, self._usage, list(self._calls)
        reason = str(error) if error is not None else "not judged"
        cases = [_case(outcomes[key] or reason for key in keys) for keys in self._keys]
        usage += Usage(failures=sum(not isinstance(outcome, Verdict) for outcome in outcomes.values()))
        return Judgement(cases, usage, calls, error, self._finished - self._started)


def _case(outcomes: Iterable[Verdict | str]) -> CaseVerdicts:
    found = list(outcomes)
    verdicts = tuple(outcome for outcome in found if isinstance(outcome, Verdict))
    reasons = [outcome for outcome in found if isinstance(outcome, str)]
    return CaseVerdicts(verdicts, reasons[0] if reasons else None)
