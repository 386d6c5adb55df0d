"""The page's messages in the reader's language.

```python
words = Words("ru")
words("unit.rows", n=5)      # "5 строк"
```
Messages are in `messages/LANGUAGE.json`: a text with `{names}`, or one text for each plural form of `{n}`. They are
plain text, which the templates escape like everything else.

Babel would replace the few lines for numbers, dates and plurals, but writes "1 234" where Russian typography has
"1234".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lorahydra.service.errors import Message
from lorahydra.service.sayings import DEPTH, KIND, POSSIBLE, PREFIX, REQUIRED, messages, sayings

__all__ = ["LANGUAGES", "Words", "chosen_language", "messages"]

LANGUAGES = {"en": "English", "ru": "Русский"}
"""The languages by code, each under its own name. The first one is used where the reader's is not among them."""
WISH = rf"(?<=,)\s*({'|'.join(LANGUAGES)})(?:-[\w-]+)?\s*(?:;\s*q=([01](?:\.\d{{1,3}})?)\s*)?(?=,)"
"""One of them in the header `Accept-Language`, with its quality."""

FRAGMENTS = ("what", "json", "error", "kind")
"""Names of values that are a few words of the group of that name."""
SPLITS, LISTS = ("split", "other"), ("names", "schemes", "variables")
"""Names of values that are a split's name, or a list in English."""


class Words:
    """Messages of one language by their key.

    Args:
        language: One of `LANGUAGES`.
    """

    def __init__(self, language: str) -> None:
        self.language = language
        self._messages = messages(language)

    def __call__(self, key: str, /, **values: Any) -> str:
        """The message with its values; `n` chooses the plural form.

        Raises:
            KeyError: There is no such message, or a value is missing, which is a fault of the page.
        """
        message = self._messages[key]
        if not isinstance(message, str):
            message = message[plural(self.language, values["n"])]
        shown = {name: self.number(value) if isinstance(value, int) else value for name, value in values.items()}
        return message.format(**shown)

    def said(self, line: str, *, among: str = "", depth: int = DEPTH) -> str | None:
        """A line of the program in this language; None if it can only be shown as it is, in English.

        Args:
            line: What was said.
            among: Only sayings whose keys begin so behind `said.`.
            depth: How deep sayings within sayings are looked for.
        """
        if self.language == next(iter(LANGUAGES)) or depth == 0:
            return None
        if isinstance(line, Message) and (key := f"{PREFIX}{line.code}") in self:
            return self(key, **line.values)
        line = KIND.sub("", line)
        for saying in sayings(messages(next(iter(LANGUAGES)))):
            if not saying.key.startswith(f"{PREFIX}{among}"):
                continue
            values = saying.match(line)
            if values is not None and (translated := self._translated(values, depth)) is not None:
                return self(saying.key, **translated)
        return None

    def _translated(self, values: Mapping[str, str], depth: int) -> dict[str, str] | None:
        """The values, of which some are sayings themselves; None if one is not that has to be."""
        found = {}
        for name, value in values.items():
            within = None
            if name in SPLITS and f"split.{value}" in self:
                within = self(f"split.{value}")
            elif name in LISTS:
                within = value.replace(" or ", f" {self('base.or')} ").replace(" and ", f" {self('base.and')} ")
            elif name in (REQUIRED, POSSIBLE):
                within = self.said(value, depth=depth - 1)
            elif name in FRAGMENTS:
                within = self.said(value, among=f"{name}.", depth=depth - 1)
            if within is None and name == REQUIRED:
                return None
            found[name] = within or value
        return found

    def __contains__(self, key: str) -> bool:
        return key in self._messages

    def number(self, value: float, digits: int = 0) -> str:
        """A number as the language writes it: 1,234.5 or 1 234,5."""
        text = f"{value:,.{digits}f}"
        if self.language != "ru":
            return text
        whole, point, rest = text.partition(".")
        # Russian does not separate four digits.
        whole = whole.replace(",", "" if abs(value) < 10_000 else "\N{NARROW NO-BREAK SPACE}")
        return f"{whole}{self.point}{rest}" if point else whole

    @property
    def point(self) -> str:
        """What separates whole numbers from fractions."""
        return "," if self.language == "ru" else "."


def plural(language: str, n: int) -> str:
    """The plural form for `n` things: `one`, `few`, `many` (Russian) or `other`, as CLDR names them."""
    if language != "ru":
        return "one" if n == 1 else "other"
    if n % 10 == 1 and n % 100 != 11:
        return "one"
    return "few" if 2 <= n % 10 <= 4 and not 12 <= n % 100 <= 14 else "many"


def chosen_language(cookie: str | None, accepted: str | None) -> str:
    """The language to answer in: the one in the cookie, else the best one of the header `Accept-Language`."""
    if cookie in LANGUAGES:
        return cookie
    wishes = re.findall(WISH, f",{(accepted or '')[:1000].lower()},")
    # `max` takes the first of equal wishes.
    language, quality = max(wishes, key=lambda wish: float(wish[1] or 1), default=("", "0"))
    return language if float(quality or 1) > 0 else next(iter(LANGUAGES))
