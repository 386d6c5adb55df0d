"""Questions and answers to train on."""

from __future__ import annotations

import json
from pathlib import Path


def question_rows(count: int = 40) -> str:
    """JSON lines of so many different questions with their answers."""
    rows = ({"question": f"What is {n}+{n}?", "answer": f"It is {2 * n}."} for n in range(count))
    return "\n".join(map(json.dumps, rows))


def write_questions(file: Path, count: int = 40) -> Path:
    """Write them to a file, which is returned."""
    file.write_text(question_rows(count), "utf-8")
    return file
