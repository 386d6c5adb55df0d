"""Text in messages that looks like control tokens, and how it stays text.

A template renders messages and its own control tokens into one text. A tokenizer that sees this text cannot distinguish
`<|im_end|>` in a message from the template's own. So names of control tokens in messages are hidden before rendering:
each is replaced by as many private-use characters as it has characters, so that no position moves. Every name in the
rendered text is then the template's. A copy of the tokenizer that knows the control tokens by other names tokenizes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cached_property
from typing import Any

from lorahydra.data.chat.turns import alternatives

__all__ = ["ControlTokens"]

# Two halves of Unicode's last plane, which is for private use.
FIRST_NAME, FIRST_STAND_IN = 0x100000, 0x108000


class ControlTokens:
    """The control tokens of a fast tokenizer and template, by their text; at most 32,768."""

    def __init__(self, tokenizer: Any, names: Iterable[str]) -> None:
        self._tokenizer = tokenizer
        self._names = list(names)
        self._pattern = alternatives(self._names)

    def hide(self, value: Any) -> Any:
        """The value (a text, or lists and mappings with texts in them) with stand-ins for names of control tokens.

        Raises:
            ValueError: A text holds such names and characters that stand in for them.
        """
        if isinstance(value, str):
            if self._pattern.search(value) and max(value) >= chr(FIRST_NAME):
                raise ValueError("it holds names of control tokens and characters of Unicode's last private-use plane")
            return self._pattern.sub(lambda match: self._stand_ins[match[0]], value)
        if isinstance(value, dict):
            return {key: self.hide(entry) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.hide(entry) for entry in value)
        return value

    def encode(self, text: str) -> Any:
        """Tokenize a rendered text with hidden names; returns an encoding of the tokenizers library."""
        # The template's control tokens get their other names, and the messages get their names of control tokens back.
        text = self._pattern.sub(lambda match: self._other_names[match[0]], text)
        hidden = {stand_in: name for name, stand_in in self._stand_ins.items()}
        text = alternatives(hidden).sub(lambda match: hidden[match[0]], text)
        return self._copy.encode(text, add_special_tokens=False)

    @cached_property
    def _stand_ins(self) -> dict[str, str]:
        return {name: chr(FIRST_STAND_IN + number) * len(name) for number, name in enumerate(self._names)}

    @cached_property
    def _other_names(self) -> dict[str, str]:
        return {name: chr(FIRST_NAME + number) * len(name) for number, name in enumerate(self._names)}

    @cached_property
    def _copy(self) -> Any:
        """The tokenizer with other names for control tokens, so that their own names are text like any other."""
        from tokenizers import Tokenizer

        names = self._other_names
        backend = json.loads(self._tokenizer.backend_tokenizer.to_str())
        backend["padding"] = backend["truncation"] = None
        for token in backend["added_tokens"]:
            token["content"] = names.get(token["content"], token["content"])
        model = backend["model"]
        # A model may have the whole name as a piece of text.
        if isinstance(model["vocab"], dict):
            model["vocab"] = {names.get(piece, piece): number for piece, number in model["vocab"].items()}
        else:
            model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
        if model.get("unk_token") is not None:
            model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
        return Tokenizer.from_str(json.dumps(backend))
