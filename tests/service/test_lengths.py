"""Datasets are measured one at a time, and few requests wait for that."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.support.waiting import wait_for

from lorahydra.service import lengths
from lorahydra.service.errors import TooManyError


def test_requests_that_measure_leave_threads_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measurer, release = lengths.Measurer(), threading.Event()
    monkeypatch.setattr(lengths, "_ask", lambda *_: release.wait() and None)
    with ThreadPoolExecutor(lengths.MOST_WAITING) as pool:
        waiting = [
            pool.submit(measurer.measure, [f"seed={n}"], "f", "f", tmp_path) for n in range(lengths.MOST_WAITING)
        ]
        wait_for(lambda: measurer._places._value == 0)  # type: ignore[attr-defined]
        with pytest.raises(TooManyError, match="wait to be measured"):
            measurer.measure(["seed=99"], "f", "f", tmp_path)
        release.set()
        assert [one.result() for one in waiting] == [None] * lengths.MOST_WAITING
    assert measurer.measure(["seed=99"], "f", "f", tmp_path) is None
