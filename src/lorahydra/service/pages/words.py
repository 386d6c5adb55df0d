"""Words of the page in the reader's language.

```python
words = Words("ru")
words("unit.rows", n=5)      # "5 строк"
```
Messages are in `messages/LANGUAGE.json`: a text with `{names}`, or one text for each plural form of `{n}`. What they
give is plain text; templates escape it as everything else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

__all__ = ["LANGUAGES", "Words", "chosen_language", "messages"]

LANGUAGES = {"en": "English", "ru": "Русский"}
"""What there is, each under its own name; the first is taken where nothing fits."""


@cache
def messages(language: str) -> Mapping[str, str | Mapping[str, str]]:
    """All messages of one language."""
    file = resources.files("lorahydra.service.pages") / "messages" / f"{language}.json"
    content: dict[str, str | dict[str, str]] = json.loads(file.read_text(encoding="utf-8"))
    return content


SAID = tuple(
    (re.compile(pattern), key)
    for pattern, key in (
        (r"judge (?P<judge>\S+) needs a key: put it into the environment variable (?P<variable>\w+)", "said.key"),
        (
            r"judge (?P<judge>\S+) needs a key: put it into the environment variable (?P<variable>\w+) "
            r"\(or (?P<other>\w+)\)",
            "said.key.or",
        ),
        (r"judge (?P<judge>\S+) needs its SDK: (?P<command>.+)", "said.sdk"),
        (r"(?P<model>\S+) is not on this machine yet: run `(?P<command>[^`]+)`", "said.fetch"),
        (r"trials of an earlier fine-tune like this", "said.earlier"),
        (r"a rough guess from (?P<weights>\d+) million weights on (?P<device>\w+)", "said.guess"),
        (r"nothing is known of the model's size", "said.nothing"),
    )
)
"""Lines of the service that are read most, and the messages that say the same."""


class Words:
    """Messages of one language by their key.

    Args:
        language: One of `LANGUAGES`.
    """

    def __init__(self, language: str) -> None:
        self.language = language
        self._messages = messages(language)

    def __call__(self, key: str, **values: Any) -> str:
        """The message with its values; `n` chooses the plural form.

        Raises:
            KeyError: There is no such message, or a value is missing: a fault of the page.
        """
        message = self._messages[key]
        if not isinstance(message, str):
            message = message[plural(self.language, values["n"])]
        shown = {name: self.number(value) if isinstance(value, int) else value for name, value in values.items()}
        return message.format(**shown)

    def said(self, line: str) -> str | None:
        """A line of the service in this language; None where there are no words for it."""
        for pattern, key in SAID:
            if (found := pattern.fullmatch(line)) is not None:
                return self(key, **found.groupdict())
        return None

    def __contains__(self, key: str) -> bool:
        return key in self._messages

    def number(self, value: float, digits: int = 0) -> str:
        """A number as the language writes it: 1,234.5 or 1 234,5."""
        text = f"{value:,.{digits}f}"
        if self.language != "ru":
            return text
        whole, point, rest = text.partition(".")
        # Four digits are written together in Russian.
        whole = whole.replace(",", "" if abs(value) < 10_000 else "\N{NO-BREAK SPACE}")
        return f"{whole},{rest}" if point else whole


def plural(language: str, n: int) -> str:
    """The plural form for `n` things: `one`, `few`, `many` (Russian) or `other`, as CLDR names them."""
    if language != "ru":
        return "one" if n == 1 else "other"
    if n % 10 == 1 and n % 100 != 11:
        return "one"
    if 2 <= n % 10 <= 4 and not 12 <= n % 100 <= 14:
        return "few"
    return "many"


def chosen_language(cookie: str | None, accepted: str | None) -> str:
    """The language to answer in.

    Args:
        cookie: What was chosen on the page.
        accepted: The header `Accept-Language`.
    """
    if cookie in LANGUAGES:
        return cookie
    wishes = []
    for part in (accepted or "")[:1000].split(","):
        tag, _, quality = part.strip().partition(";")
        wishes.append((_quality(quality), tag.strip().lower().partition("-")[0]))
    # Sorting is stable: of equal wishes the first one counts.
    known = [tag for quality, tag in sorted(wishes, key=lambda wish: -wish[0]) if quality > 0 and tag in LANGUAGES]
    return known[0] if known else next(iter(LANGUAGES))


def _quality(text: str) -> float:
    name, _, value = text.partition("=")
    if name.strip() != "q":
        return 1.0
    try:
        return float(value)
    except ValueError:
        return 0.0
