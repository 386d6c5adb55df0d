"""Judges against a loopback server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.judges.wire import CREDENTIALS, KEY, JudgeServer, judge_server


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with judge_server() as running:
        yield running


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keys of the loopback server, and a cache of one's own."""
    for name in ("GEMINI_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, KEY)
    monkeypatch.delenv("GOOGLE_API_KEY", raising=False)
    monkeypatch.setenv("GIGACHAT_CREDENTIALS", CREDENTIALS)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("LORAHYDRA_CACHE", str(tmp_path / "cache"))
