"""How two processes that end the same study go together."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest

from lorahydra.sweep import conclusion
from lorahydra.sweep.storage import end_lock, open_storage

SECONDS = 20


def test_a_process_that_waits_for_another_one_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/studies.db")
    run: Any = SimpleNamespace(queue=SimpleNamespace(study=optuna.create_study(storage=storage, study_name="one")))
    held, told = threading.Event(), threading.Event()

    def hold() -> None:
        with end_lock(storage, "one"):
            held.set()
            assert told.wait(SECONDS)

    def tell(message: str, *_: object) -> None:
        assert "another process names the winner" in message
        told.set()

    monkeypatch.setattr(conclusion, "_conclude", lambda *_: "done")
    monkeypatch.setattr(logging.getLogger("lorahydra.sweep"), "info", tell)
    other = threading.Thread(target=hold)
    other.start()
    assert held.wait(SECONDS)
    compose: Any = None
    result: Any = conclusion.conclude(run, compose, lambda _: 1)
    assert result == "done"
    other.join(SECONDS)
    assert told.is_set()
    storage.engine.dispose()  # type: ignore[attr-defined]
