"""English words on pages in another language."""

from __future__ import annotations

import re
from html.parser import HTMLParser

KEPT = """
    lorahydra LoRA MLflow BERTScore PEFT OpenAI API LLM JavaScript Qwen Instruct GigaChat Max gpt mini smollm instruct
    JSON JSONL CSV TSV Parquet UTF UTC Windows windows cp koi Ctrl Enter cpu cuda
    gemini gemini_legacy flash gigachat openai local panel
    question answer messages demo
    GEMINI_API_KEY GOOGLE_API_KEY GIGACHAT_CREDENTIALS OPENAI_API_KEY LORAHYDRA_API_TOKEN HF_HUB_OFFLINE
    pip install google-genai
"""
NAMES = frozenset(KEPT.split())
"""What keeps its name in every language: products, formats, keys, variables, judges and their models."""
FOREIGN = ("bdi", "blockquote", "code", "pre", "option", "script", "style", "title", "textarea")
"""Elements with what users, models and the program's log say, and names that are written as in a config."""
SHOWN = ("aria-label", "title", "placeholder", "alt")
"""Attributes that people read."""
VOID = ("br", "img", "input", "link", "meta", "hr")
WORD = re.compile(r"(?<![0-9])[A-Za-z][A-Za-z0-9_-]*[A-Za-z0-9_]")
"""Of at least two characters, unless it belongs to a number such as 1e-05."""
ADDRESS = re.compile(r"https?://\S+|[\w./-]*/[\w./-]+|\S+\.(?:jsonl?|csv|parquet|exe)\b|[a-z_]+(?:\.[a-z_]+)+")
"""Addresses, paths, names of files and keys of the config."""


class _Text(HTMLParser):
    """Collects what is written by the page itself, and not by those who use it."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self._open: list[tuple[str, bool]] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        # The program's own words are marked as English where the page has no message for them, which is a fault.
        quoted = (values.get("lang") == "en" and values.get("class") != "said") or values.get("dir") == "auto"
        skipped = tag in FOREIGN or quoted or self._is_skipped
        if not skipped:
            self.texts += [value for name, value in values.items() if name in SHOWN or _is_said(name, value)]
        if tag not in VOID:
            self._open.append((tag, skipped))

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not self._is_skipped:
            self.texts.append(data)

    @property
    def _is_skipped(self) -> bool:
        return bool(self._open) and self._open[-1][1]


def _is_said(name: str, value: str) -> bool:
    """Whether an attribute has a sentence that a script shows."""
    return name.startswith("data-") and " " in value


def english_words(page: str) -> list[str]:
    """The English words that a page says itself, each with the text that it is in."""
    text = _Text()
    text.feed(page)
    return [
        f"{word} in {' '.join(said.split())[:80]!r}"
        for said in text.texts
        for word in WORD.findall(ADDRESS.sub(" ", said))
        if word not in NAMES and not {part for part in re.split(r"[-\d]+", word) if len(part) > 1} <= NAMES
    ]
