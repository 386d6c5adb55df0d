r"""Finds JSON objects in a text, also in the loose form of language models, if they can be read in only one way.

Accepted beyond JSON: line breaks and tabs inside strings, escapes that JSON does not have (`\_`), trailing commas, `//`
and `/* */` comments, strings in single or typographic quotation marks, keys without quotation marks, Python's `True`
and `None`, and `4/5` or `80%` in the place of a number, which become strings. A string ends at the first mark that
could end it; if what follows does not fit the grammar, the whole object is unreadable. Nothing is guessed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

__all__ = ["DuplicateKeys", "objects"]

LOOKS_LIKE_JSON = re.compile(r"\{\s*[\"'“”„«]")
DEPTH = 50
"""Deepest nesting that is read."""
MARKS = {'"': '"', "'": "'", "“": "”“", "”": "”", "„": "“”", "«": "»"}
"""Each mark that opens a string, with those that may close it."""
STRING = "|".join(rf"{opening}(?:[^\\{ends}]|\\.)*+[{ends}]" for opening, ends in MARKS.items())
# Comments have a limit, so that the time to read a text is linear in its length.
GAP = r"\s+|//[^\n]{0,1000}(?=\n|$)|/\*[^*]{0,1000}\*/"
NUMBER = r"[+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?(?:\s*/\s*\d+(?:\.\d+)?|\s*%)?"
TOKEN = re.compile(
    rf"(?P<gap>{GAP})|(?P<string>{STRING})|(?P<key>[^\W\d]\w*(?=(?:{GAP})*:))|(?P<word>[^\W\d]\w*)|(?P<number>{NUMBER})"
    r"|(?P<open>[{[])|(?P<close>[]}])|[,:]",
    re.DOTALL,
)
JSON_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?")
WORDS = {"true": "true", "false": "false", "null": "null", "none": "null"}
ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))", re.DOTALL)
ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", **{mark: mark for mark in "\"'/\\“”„«»"}}


class DuplicateKeys(dict[str, Any]):
    """An object in which a key occurs twice."""


def objects(text: str) -> Iterator[dict[str, Any]]:
    """The outermost objects in `text`; one in which a key occurs twice is a `DuplicateKeys`.

    Raises:
        ValueError: Something that looks like an object is broken or cut short; its inside may be a quotation, so
            neither it nor what follows it is read.
    """
    decoder = json.JSONDecoder(object_pairs_hook=_unique, strict=False)
    position = text.find("{")
    while position >= 0:
        try:
            try:
                parsed, end = decoder.raw_decode(text, position)
            except (ValueError, RecursionError):
                strict, end = _as_json(text, position)
                parsed = decoder.decode(strict)
        except ValueError:
            if LOOKS_LIKE_JSON.match(text, position):
                raise
            end = position + 1
        else:
            yield parsed
        position = text.find("{", end)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    return values if len(values) == len(pairs) else DuplicateKeys(values)


def _as_json(text: str, position: int) -> tuple[str, int]:
    """The object at `position` rewritten as JSON, as far as its tokens allow, and where it ends."""
    written: list[str] = []
    depth = 0
    while depth <= DEPTH and (match := TOKEN.match(text, position)):
        token, position = match[0], match.end()
        match match.lastgroup:
            case "gap":
                continue
            case "string":
                token = json.dumps(ESCAPE.sub(_unescaped, token[1:-1]))
            case "key":
                token = json.dumps(token)
            case "word":
                token = WORDS.get(token.lower(), token)
            case "number":
                number = token.removeprefix("+")
                token = number if JSON_NUMBER.fullmatch(number) else json.dumps(token)
            case "open":
                depth += 1
            case "close":
                depth -= 1
                if written[-1] == "," and written[-2] not in "{[,":
                    written.pop()
        written.append(token)
        if not depth:
            # Tokens stay separate: `6 4` is not 64.
            return " ".join(written), position
    raise ValueError(f"broken at {position}")


def _unescaped(match: re.Match[str]) -> str:
    """The characters that an escape means; a backslash that begins no escape stands for itself."""
    return chr(int(match[1], 16)) if match[1] else ESCAPES.get(match[2], match[0])
