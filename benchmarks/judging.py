"""Time to judge, against the loopback server of the tests: `python benchmarks/judging.py [--runs 3]`.

50 answers at half a second a call and eight calls at a time need seven rounds, 3.5 s; lorahydra and the SDK take the
rest of the time. The second line judges the same answers again, from the cache.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.judges.wire import CREDENTIALS, KEY, MODEL, JudgeServer, judge_server

from lorahydra.config.compose import compose
from lorahydra.judges import JudgeCase, JudgeSession, make_judge, start_judging
from lorahydra.judges.cache import VerdictCache

EXAMPLES, SECONDS, CONCURRENCY = 50, 0.5, 8


def judge(name: str, server: JudgeServer, cache: VerdictCache) -> tuple[float, int]:
    """Seconds and calls."""
    addresses = {"gemini": server.gemini, "gemini_legacy": server.gemini, "gigachat": server.gigachat}
    overrides = [f"judge.base_url={addresses.get(name, server.openai)}", f"judge.concurrency={CONCURRENCY}"]
    if name == "gigachat":
        overrides.append(f"judge.auth_url={server.oauth}")
    config = compose([f"judge={name}", f"judge.model={MODEL}", *overrides]).judge
    session = JudgeSession(config, make_judge(config), cache)
    before = server.calls
    started = time.perf_counter()
    judgement = start_judging(session, [JudgeCase(f"q {n}", "r", "a") for n in range(EXAMPLES)]).wait()
    seconds = time.perf_counter() - started
    session.close()
    assert judgement.coverage == 1, judgement.main_fault
    return seconds, server.calls - before


def main() -> None:
    """Measure each judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    runs = parser.parse_args().runs
    os.environ |= {"GEMINI_API_KEY": KEY, "OPENAI_API_KEY": KEY, "GIGACHAT_CREDENTIALS": CREDENTIALS, "NO_PROXY": "*"}
    for name in ("gemini", "gemini_legacy", "gigachat", "openai"):
        first, again = [], []
        for _ in range(runs):
            with judge_server(delay=SECONDS) as server, tempfile.TemporaryDirectory() as folder:
                cache = VerdictCache(Path(folder, "verdicts.sqlite"))
                seconds, calls = judge(name, server, cache)
                first.append(seconds)
                assert calls == EXAMPLES
                seconds, calls = judge(name, server, cache)
                again.append(seconds)
                assert calls == 0
        print(f"{name:14} median {statistics.median(first):.2f} s, again {statistics.median(again):.3f} s and 0 calls")


if __name__ == "__main__":
    main()
