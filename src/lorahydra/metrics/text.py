"""Texts as metrics compare them: without case, punctuation and articles, as in SQuAD (Rajpurkar et al., 2016)."""

from __future__ import annotations

import re
import string
import sys
import unicodedata

__all__ = ["normalized"]

PUNCTUATION = dict.fromkeys(
    [*map(ord, string.punctuation), *(n for n in range(sys.maxunicode + 1) if unicodedata.category(chr(n))[0] == "P")]
)
"""SQuAD's characters, and the punctuation of all other scripts."""
ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalized(text: str) -> str:
    """The text in lower case, without punctuation, English articles and needless white space."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())
