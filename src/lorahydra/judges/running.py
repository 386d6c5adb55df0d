"""Judges many answers at once in threads, with a cache, and stops early if going on makes no sense."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence

from lorahydra.errors import JudgeBudgetError, JudgeError, JudgeSetupError, LorahydraError
from lorahydra.judges.asking import JudgeCall, ask_for_verdict
from lorahydra.judges.base import Fault, JudgeCase, JudgeFault, Verdict
from lorahydra.judges.judgement import Judgement
from lorahydra.judges.session import SingleSession
from lorahydra.utils.progress import Progress

__all__ = ["RunningJudgement"]

REFUSALS_TO_STOP = 3
"""Refused requests in a row that show that the examples are not to blame."""
OUTAGES_TO_STOP = 2
"""Examples given up in a row, without any reply meanwhile, that show that the service is unavailable."""
SECONDS_TO_END = 1.0
"""How long running calls are waited for when judging ends early: their verdicts are paid for."""


class RunningJudgement(Judgement):
    """The judging of some examples by one judge.

    Args:
        session: The judge.
        cases: A case for each example, or None for those that are not judged.
        repeats: Verdicts for each.
    """

    session: SingleSession

    def __init__(self, session: SingleSession, cases: Sequence[JudgeCase | None], repeats: int) -> None:
        self.session = session
        self._keys = [
            [session.key(case, repeat) for repeat in range(repeats)] if case is not None else [] for case in cases
        ]
        self.chosen = sum(bool(keys) for keys in self._keys)
        self._cases = {key: case for case, keys in zip(cases, self._keys, strict=True) for key in keys if case}
        self._open = queue.SimpleQueue[str]()
        for key in self._cases:
            self._open.put(key)
        self._ended = queue.SimpleQueue[None]()
        self._threads: list[threading.Thread] = []
        self._stop = threading.Event()
        self._started = self._finished = time.perf_counter()
        # Threads write these; `wait` copies them, so that a call that ends too late changes nothing.
        self._lock = threading.Lock()
        self._outcomes: dict[str, Verdict | str] = {}
        self._calls: list[JudgeCall] = []
        self._cache_hits = 0
        self._error: LorahydraError | None = None
        self._refusals_in_a_row = self._outages_in_a_row = 0
        self.on_error: Callable[[], object] = bool
        """Called when judging ends early."""

    def start(self) -> None:
        """Begin to call the judge in threads, unless it computes on this machine; `wait` does so, too."""
        if not self.session.judge.runs_here and not self._threads:
            self._started = time.perf_counter()
            self._start_threads()

    def stop(self) -> None:
        """See `Judgement.stop`."""
        self._stop.set()
        self._ended.put(None)  # so that nobody waits for a call that is running

    def wait(self, progress: Progress | None = None) -> Judgement:
        """See `Judgement.wait`."""
        runs_here = self.session.judge.runs_here
        if runs_here:
            self._started = time.perf_counter()
        self.start()
        try:
            with (progress or Progress()).task("Judging", total=len(self._cases)) as advance:
                for _ in self._cases:
                    if runs_here:
                        self._work_once()
                    self._ended.get()
                    if self._stop.is_set():
                        break
                    advance(1, "")
        finally:
            # Also on Ctrl-C: running calls end by themselves, and no new ones begin.
            self._stop.set()
        deadline = time.monotonic() + SECONDS_TO_END
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._sum_up()
        return self

    def _sum_up(self) -> None:
        with self._lock:
            outcomes = dict(self._outcomes)
            self.calls, self.cache_hits, self.error = list(self._calls), self._cache_hits, self._error
        self.seconds = self._finished - self._started
        reason = str(self.error) if self.error is not None else "not judged"
        self.verdicts, self.missing = [], []
        for keys in self._keys:
            results = [outcomes.get(key, reason) for key in keys]
            self.verdicts.append(tuple(outcome for outcome in results if isinstance(outcome, Verdict)))
            self.missing.append(next((outcome for outcome in results if isinstance(outcome, str)), None))
        self.failures = sum(not isinstance(outcomes.get(key), Verdict) for key in self._cases)

    def _start_threads(self) -> None:
        for number in range(min(self.session.config.concurrency, len(self._cases))):
            # A daemon: a call that hangs must not hold up the end of the process.
            thread = threading.Thread(target=self._work, name=f"lorahydra-judge-{number}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _work(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._work_once()

    def _work_once(self) -> None:
        """Get one verdict; raises `queue.Empty` when none is left to begin."""
        key = self._open.get_nowait()
        try:
            outcome = None if self._stop.is_set() else self._verdict(key)
            if outcome is not None:
                with self._lock:
                    self._outcomes[key] = outcome
        except Exception as error:
            # No thread may die silently.
            self._end(self.session.crashed(error))
        finally:
            self._finished = time.perf_counter()
            self._ended.put(None)

    def _verdict(self, key: str) -> Verdict | str | None:
        """The verdict from the cache or the judge, or why there is none; None when judging was stopped before."""
        cache = self.session.cache
        if cache is None:
            return self._ask(key)
        if (verdict := cache.get(key)) is None:
            with cache.claimed(key, self._stop):
                # While this one waited for the claim, another process may have stored the verdict.
                if (verdict := cache.get(key)) is None:
                    outcome = self._ask(key)
                    if isinstance(outcome, Verdict):
                        cache.put(key, self.session.config.name, outcome)
                    return outcome
        with self._lock:
            self._cache_hits += 1
        return verdict

    def _ask(self, key: str) -> Verdict | str | None:
        started = time.monotonic()
        try:
            verdict = ask_for_verdict(self.session, self._cases[key], stop=self._stop, record=self._calls.append)
        except JudgeFault as fault:
            self._note_fault(fault, started)
            return str(fault)
        except (JudgeBudgetError, JudgeSetupError) as error:
            self._end(error)
            return None
        with self._lock:
            self._refusals_in_a_row = self._outages_in_a_row = 0
        return verdict

    def _note_fault(self, fault: JudgeFault, started: float) -> None:
        """Find out whether it is worth going on with other examples."""
        session, kind = self.session, fault.fault
        with self._lock:
            # A model on this machine refuses what is too long for it, which says nothing about the next example.
            refused = kind is Fault.REQUEST_REFUSED and not session.judge.runs_here
            outage = kind.is_outage and session.last_reply < started
            self._refusals_in_a_row = self._refusals_in_a_row + 1 if refused else 0
            self._outages_in_a_row = self._outages_in_a_row + 1 if outage else 0
            hopeless = kind.ends_judging or self._refusals_in_a_row >= REFUSALS_TO_STOP
            # One example may be more than a server can take; where there is no connection, the example is not to blame.
            enough = 1 if kind is Fault.CONNECTION or len(self._cases) == 1 else OUTAGES_TO_STOP
            unavailable = outage and self._outages_in_a_row >= enough
        if hopeless:
            self._end(JudgeSetupError(f"judge {session.label}: {fault}{session.advice(kind)}"))
        elif unavailable and not self._stop.is_set():
            self._end(JudgeError(f"judge {session.label} is unavailable: {fault}"))

    def _end(self, error: LorahydraError) -> None:
        """End judging early; the first reason stays."""
        with self._lock:
            self._error = self._error or error
        self.stop()
        self.on_error()
