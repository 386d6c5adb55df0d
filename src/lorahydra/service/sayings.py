"""What the program says in English, with names for what varies, so that the page can say it in another language.

```python
for saying in sayings(messages("en")):
    if (values := saying.match("judge gemini is unavailable: no connection")) is not None:
        saying.key, values      # "said.judge.unavailable", {"judge": "gemini", "maybe": "no connection"}
```
The English messages that begin with `said.` are what the program writes, with names for what varies; a test keeps them
in step with the code. So a failure of a study in its own process, or one that was stored long ago, has a code and its
values as well.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

__all__ = ["DEPTH", "KIND", "POSSIBLE", "PREFIX", "REQUIRED", "Saying", "messages", "sayings"]

PREFIX = "said."
"""Begins the keys of messages that the program says itself, in English."""
KIND = re.compile(r"^[A-Z]\w*Error: ")
"""The class of an error, which a trial's failure begins with."""
DEPTH = 4
"""Sayings within sayings; a limit, because lines may hold anything."""
REQUIRED, POSSIBLE = "why", "maybe"
"""Names of values that are sayings themselves: always, or perhaps."""


@cache
def messages(language: str) -> Mapping[str, str | Mapping[str, str]]:
    """All messages of one language."""
    file = resources.files("lorahydra.service.pages") / "messages" / f"{language}.json"
    content: dict[str, str | dict[str, str]] = json.loads(file.read_text(encoding="utf-8"))
    return content


@dataclass(frozen=True)
class Saying:
    """What the program writes, as texts that are always the same with something that varies between them."""

    key: str
    texts: tuple[str, ...]
    """One more than `names`; the first and the last may be empty."""
    names: tuple[str, ...]

    def match(self, line: str) -> dict[str, str] | None:
        """What varies in a line, by name; None if the line says something else. It takes linear time."""
        if not self.names:
            return {} if line == self.texts[0] else None
        first, *between, last = self.texts
        end = len(line) - len(last)
        if not line.startswith(first) or not line.endswith(last) or end < len(first):
            return None
        values, place = [], len(first)
        for text in between:
            found = line.find(text, place, end)
            if found < 0:
                return None
            values.append(line[place:found])
            place = found + len(text)
        return dict(zip(self.names, [*values, line[place:end]], strict=True))


@cache
def _sayings(messages: tuple[tuple[str, str], ...]) -> tuple[Saying, ...]:
    made = []
    for key, message in messages:
        texts, names = [""], []
        for text, name, _, _ in string.Formatter().parse(message):
            texts[-1] += text
            if name is not None:
                names.append(name)
                texts.append("")
        made.append(Saying(key, tuple(texts), tuple(names)))
    # What says more is tried first.
    return tuple(sorted(made, key=lambda saying: -sum(map(len, saying.texts))))


def sayings(messages: Mapping[str, object]) -> Iterator[Saying]:
    """What the program writes, by the English messages; those with the longest texts first."""
    said = ((key, text) for key, text in messages.items() if key.startswith(PREFIX) and isinstance(text, str))
    return iter(_sayings(tuple(said)))
