"""Texts as metrics compare them: without case, punctuation and articles, as in SQuAD (Rajpurkar et al., 2016)."""

from __future__ import annotations

import re
import string
import unicodedata

__all__ = ["normalized"]

ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalized(text: str) -> str:
    """The text in lower case, without punctuation (of all scripts), English articles and needless white space."""
    kept = "".join(c for c in text.lower() if c not in string.punctuation and unicodedata.category(c)[0] != "P")
    return " ".join(ARTICLES.sub(" ", kept).split())
