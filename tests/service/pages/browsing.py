"""A real browser, if there is one, and what looks for faults of accessibility on its pages.

`axe.min.js` beside this file (MPL-2.0, see `axe.LICENSE.txt`) does the latter.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

__all__ = ["AXE", "CHROMIUM", "MILLISECONDS", "NEEDS_BROWSER", "QUIET"]

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
NEEDS_BROWSER = [
    pytest.mark.slow,
    pytest.mark.service,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on PATH"),
]
QUIET = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
AXE = Path(__file__).with_name("axe.min.js").read_text(encoding="utf-8")
MILLISECONDS = 150_000
"""Longest wait for anything, such as a study."""
