"""From conversations to tokens: the model's chat template, and exactly which tokens carry loss.

Training sees what generation will: the prompt's tokens (everything before the last answer, with the
template's generation prompt), then those of the answer. A tokenizer that would join the two with a token
across the border gets them apart.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from lorahydra.data.examples import Example
from lorahydra.data.rendering import Rendered, Renderer
from lorahydra.data.spans import Span, token_span
from lorahydra.errors import ModelError

__all__ = ["IGNORE_INDEX", "ChatFormat", "Encoded", "Tokens"]

IGNORE_INDEX = -100
"""Label of a token without loss, as torch's cross entropy has it."""
VERSION = 1
"""Part of the fingerprint: raise it when the same conversation is tokenized differently."""


@dataclass(frozen=True)
class Encoded:
    """An example as the model sees it in training."""

    input_ids: list[int]
    labels: list[int]
    """The token itself where it carries loss, else `IGNORE_INDEX`; not shifted."""


class Tokens(NamedTuple):
    """The same, with the loss as spans of token positions."""

    input_ids: list[int]
    spans: list[Span]


class ChatFormat:
    """A tokenizer with its chat template.

    Args:
        tokenizer: A fast tokenizer of transformers.
        chat_template: Jinja text, or the path of a file that holds it; by default the tokenizer's own, and
            `PLAIN_TEMPLATE` where it has none.
        system_prompt: System message for conversations that have none.

    Raises:
        ModelError: The tokenizer is not a fast one, has no end-of-sequence token, or the template is broken.
    """

    def __init__(self, tokenizer: Any, *, chat_template: str | None = None, system_prompt: str | None = None) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError("the model's tokenizer has no fast version (tokenizer.json), which is needed here")
        if tokenizer.eos_token is None:
            raise ModelError(
                "the model's tokenizer has no end-of-sequence token, so answers would not end: set eos_token"
            )
        self._tokenizer = tokenizer
        self._renderer = Renderer(tokenizer, chat_template, system_prompt)
        self._system_prompt = system_prompt
        self.template = self._renderer.template.text
        """The template in use, as Jinja text."""
        self.is_plain = self._renderer.template.is_plain
        """Whether `PLAIN_TEMPLATE` is used because the model has no template."""

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 of all that decides how a conversation is tokenized."""
        backend = json.loads(self._tokenizer.backend_tokenizer.to_str())
        # These two are the state of the last call, not a part of the vocabulary.
        backend.pop("padding", None)
        backend.pop("truncation", None)
        parts = [
            VERSION,
            self._renderer.template.text,
            self._system_prompt,
            self._tokenizer.special_tokens_map,
            backend,
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def encode(self, example: Example) -> Encoded:
        """Tokenize an example for training; every assistant turn carries loss, with its end-of-turn token.

        Raises:
            DataError: The template refuses the conversation or changes an answer.
        """
        ids, spans = self.encode_batch([example])[0]
        labels = [IGNORE_INDEX] * len(ids)
        for start, end in spans:
            labels[start:end] = ids[start:end]
        return Encoded(ids, labels)

    def encode_batch(self, examples: Sequence[Example], source: str | None = None) -> list[Tokens]:
        """Tokenize examples together, which is faster; `source` is named in errors."""
        texts = [self._renderer.whole(example, source) for example in examples]
        prompts = self._tokenize([text.prompt for text in texts])["input_ids"]
        wholes = self._tokenize([text.prompt + text.completion for text in texts], offsets=True)
        return [
            self._join(text, prompt, ids, offsets)
            for text, prompt, ids, offsets in zip(
                texts, prompts, wholes["input_ids"], wholes["offset_mapping"], strict=True
            )
        ]

    def _join(self, text: Rendered, prompt: list[int], ids: list[int], offsets: list[Span]) -> Tokens:
        """Tokens of an example, given those of its prompt and those of all its text in one piece."""
        end = len(text.prompt) + text.learned
        if ids[: len(prompt)] != prompt:
            apart = self._tokenize([text.prompt, text.completion], offsets=True)
            ids = prompt + apart["input_ids"][1]
            shift = len(text.prompt)
            before, after = apart["offset_mapping"]
            offsets = before + [(start + shift, stop + shift) for start, stop in after]
        spans = [token_span(text.prompt, offsets, span) for span in text.earlier]
        return Tokens(ids, [*spans, (len(prompt), token_span(text.prompt, offsets, (0, end))[1])])

    def prompt_ids(self, example: Example) -> list[int]:
        """Tokens of everything before the last answer, and the generation prompt: the start of `encode`."""
        ids: list[int] = self._tokenize([self._renderer.prompt(example)])["input_ids"][0]
        return ids

    def prompt_text(self, example: Example) -> str:
        """The prompt for people: the question alone, or all turns before the answer with their roles."""
        *context, _ = example.messages
        if len(context) == 1:
            return context[0].content
        return "\n".join(f"{message.role}: {message.content}" for message in context)

    def reference(self, example: Example) -> str:
        """The last answer."""
        return example.messages[-1].content

    def _tokenize(self, texts: list[str], *, offsets: bool = False) -> Any:
        # The template has put in all special tokens that belong there.
        return self._tokenizer(
            texts,
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            return_offsets_mapping=offsets,
            verbose=False,
        )
