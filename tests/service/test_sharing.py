"""One answer for many who ask, and never one from before a change."""

from __future__ import annotations

import itertools
import math
import threading
from types import SimpleNamespace

import pytest
from tests.support.waiting import SECONDS

from lorahydra.service import sharing
from lorahydra.service.service import Service
from lorahydra.service.sharing import Shared
from lorahydra.service.views import FineTuneParams


def test_an_answer_is_made_once_for_all_who_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "SECONDS", math.inf)
    shared, made, go = Shared[int](), itertools.count(1), threading.Event()
    answers: list[int] = []

    def slow() -> int:
        go.wait(SECONDS)
        return next(made)

    threads = [threading.Thread(target=lambda: answers.append(shared.get("list", lambda: 0, slow))) for _ in range(10)]
    for thread in threads:
        thread.start()
    go.set()
    for thread in threads:
        thread.join()
    assert answers == [1] * 10


def test_an_answer_is_made_again_when_something_changed_or_time_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, version, made = [100.0], [1], itertools.count(1)
    monkeypatch.setattr(sharing, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    shared = Shared[int]()

    def ask(key: str = "list") -> int:
        return shared.get(key, lambda: version[0], lambda: next(made))

    assert [ask(), ask(), ask("other"), ask()] == [1, 1, 2, 1]
    version[0] += 1
    assert [ask(), ask()] == [3, 3]
    clock[0] += sharing.SECONDS
    assert ask() == 4


def test_a_change_while_an_answer_is_made_makes_it_outdated() -> None:
    version, shared = [1], Shared[str]()

    def make() -> str:
        version[0] += 1
        return "old"

    assert shared.get("list", lambda: version[0], make) == "old"
    assert shared.get("list", lambda: version[0], lambda: "new") == "new"


def test_the_list_has_every_change_at_once(service: Service) -> None:
    for number in range(1, 4):
        service.jobs.start(123, FineTuneParams(False, None, "tiny", 5))
        assert [job.place for job in service.jobs.page().items] == list(range(number, 0, -1))
    service.jobs.cancel(1)
    assert [(job.id, job.state, job.place) for job in service.jobs.page().items] == [
        (3, "queued", 2), (2, "queued", 1), (1, "cancelled", None),
    ]  # fmt: skip
    service.jobs.resume(1)
    assert [job.place for job in service.jobs.page().items] == [2, 1, 3]
