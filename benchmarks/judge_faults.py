"""Faults of judges, over the real SDKs against a loopback server: `python benchmarks/judge_faults.py [--examples 40]`.

For each kind of fault in `tests/judges/faults.py`, each service answers a share of the calls with it and the others
correctly. A verdict must be the one that the server meant for that answer, or missing; the exit code is 1 if one is
wrong. Half of the answers contain a fake verdict, for the kinds that quote it. At the end all kinds are mixed.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.judges.faults import KINDS, WIRE, fake_verdict
from tests.judges.wire import CREDENTIALS, KEY, MODEL, JudgeServer, Request, judge_server

from lorahydra.config.compose import compose
from lorahydra.config.judge import JudgeConfig
from lorahydra.errors import LorahydraError
from lorahydra.judges import JudgeCase, JudgeSession, make_judge, start_judging

SERVICES = ("gemini", "gemini_legacy", "gigachat", "openai")
END = ("HTTP 401", "HTTP 402", "HTTP 403", "HTTP 404")
"""Faults that end judging at once, and so are not mixed with the others."""
OAUTH = [kind for kind in WIRE if kind not in END]


@dataclass
class Count:
    """The results of judging."""

    right: int = 0
    missing: int = 0
    wrong: int = 0
    calls: int = 0
    seconds: float = 0.0
    ended: str = ""

    def __add__(self, other: Count) -> Count:
        return Count(
            *(getattr(self, name) + getattr(other, name) for name in ("right", "missing", "wrong", "calls", "seconds")),
            ended=self.ended or other.ended,
        )


def plan(kinds: tuple[str, ...], share: float) -> Callable[[Request, int], str]:
    """Faults by the content of a request and its attempt: the same ones in every run."""

    def planned(request: Request, attempt: int) -> str:
        digest = hashlib.sha256(f"{kinds} {request.service} {request.user} {attempt}".encode()).digest()
        chosen = kinds[int.from_bytes(digest[1:5], "big") % len(kinds)]
        return chosen if digest[0] < share * 256 else "good"

    return planned


def settings(name: str, server: JudgeServer) -> JudgeConfig:
    """The judge, with short timeouts, which do not change the faults."""
    address = {"gigachat": server.gigachat, "openai": server.openai}.get(name, server.gemini)
    overrides = [f"judge.base_url={address}", "judge.timeout=1", "judge.concurrency=16", "judge.trace=false"]
    if name == "gigachat":
        overrides.append(f"judge.auth_url={server.oauth}")
    return compose([f"judge={name}", f"judge.model={MODEL}", *overrides]).judge


def cases(count: int, criteria: list[str]) -> list[JudgeCase]:
    """Cases with different questions; every second answer contains a verdict."""
    fake = fake_verdict(criteria)
    answers = (f"Answer {n}. {fake if n % 2 else ''}" for n in range(count))
    return [JudgeCase(f"Question number {n}?", f"Reference {n}", answer) for n, answer in enumerate(answers)]


def judged(name: str, kinds: tuple[str, ...], share: float, examples: int, oauth: bool = False) -> Count:
    """Judge under faults and compare with what the server meant."""
    planned = plan(kinds, share)
    with judge_server((lambda request, attempt: "good") if oauth else planned) as server:
        if oauth:
            server.token_seconds = 0.2
            server.plan_of_oauth = lambda attempt: planned(Request(name, "", "", {}, {}), attempt)
        config = settings(name, server)
        session = JudgeSession(config, make_judge(config), None)
        started = time.perf_counter()
        wanted = cases(examples, list(config.rubric.criteria))
        judgement = start_judging(session, wanted).wait()
        count = Count(calls=server.calls, seconds=time.perf_counter() - started)
        for case, verdicts in zip(wanted, judgement.verdicts, strict=True):
            meant = [
                request.verdict()["scores"] for request in server.requests if f"\n{case.question}\n" in request.user
            ]
            if not verdicts:
                count.missing += 1
            elif dict(verdicts[0].scores) in meant:
                count.right += 1
            else:
                count.wrong += 1
                print(f"WRONG: {name}, {kinds if len(kinds) < 3 else 'mixed'}: {verdicts[0]}")
        count.ended = "" if judgement.error is None else str(judgement.error)[:90]
        session.close()
    return count


def main() -> int:
    """Judge under each kind of fault, and under all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=40)
    parser.add_argument("--share", type=float, default=0.3)
    parser.add_argument("--kind", help="only this one")
    arguments = parser.parse_args()
    os.environ |= {"GEMINI_API_KEY": KEY, "OPENAI_API_KEY": KEY, "GIGACHAT_CREDENTIALS": CREDENTIALS, "NO_PROXY": "*"}
    logging.disable(logging.WARNING)
    total = Count()
    print(f"{'fault':34} {'right':>6} {'missing':>8} {'wrong':>6} {'calls':>6} {'s':>6}")

    def line(kind: str, count: Count) -> Count:
        ended = f"  ended: {count.ended}" if count.ended else ""
        numbers = f"{count.right:6} {count.missing:8} {count.wrong:6} {count.calls:6} {count.seconds:6.1f}"
        print(f"{kind:34} {numbers}{ended}", flush=True)
        return count

    try:
        for kind in [arguments.kind] if arguments.kind else KINDS:
            count = sum((judged(name, (kind,), arguments.share, arguments.examples) for name in SERVICES), Count())
            total += line(kind, count)
        if not arguments.kind:
            for kind in OAUTH:
                total += line(
                    f"token: {kind}", judged("gigachat", (kind,), arguments.share, arguments.examples // 4, True)
                )
            mixed = tuple(kind for kind in KINDS if kind not in END)
            for name in SERVICES:
                total += line(f"all, {name}", judged(name, mixed, arguments.share, 10 * arguments.examples))
    except LorahydraError as error:
        print(error)
        return 1
    line(f"{len(KINDS)} kinds, {len(SERVICES)} services", total)
    return int(total.wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
