"""From conversations to tokens: the model's chat template, and exactly which tokens carry loss.

Training sees what generation will see: the prompt's tokens (everything before the last answer, with the template's
generation prompt), then those of the answer. Where a tokenizer would join the two with one token, they are tokenized
separately. The tokenizer works in its usual way, except on examples with names of control tokens that must stay text.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

from lorahydra.data.chat.conversation import Conversation, Rendered, Span
from lorahydra.data.chat.rendering import Renderer
from lorahydra.data.chat.row_warnings import RowChecker, RowWarning
from lorahydra.data.chat.turns import TextEnd
from lorahydra.data.examples import Example
from lorahydra.errors import ModelError

__all__ = ["IGNORE_INDEX", "ChatFormat", "Tokens"]

IGNORE_INDEX = -100
"""Label of a token without loss: the default `ignore_index` of torch's cross entropy."""
VERSION = 1
"""Part of the fingerprint: raise it when the same conversation is tokenized differently."""


class Tokens(NamedTuple):
    """An example as the model sees it in training."""

    input_ids: list[int]
    spans: list[Span]
    """Positions of the tokens that carry loss."""
    lost: tuple[RowWarning, ...] = ()
    """What the example contains but the template has no place for."""


Encoding = tuple[list[int], list[Span]]
"""A text as tokens, with the characters that each stands for (where they were requested)."""


class ChatFormat:
    """A tokenizer with its chat template.

    Args:
        tokenizer: A fast tokenizer of transformers.
        chat_template: Jinja text, or the path of a file that holds it; by default the tokenizer's own, and
            `PLAIN_TEMPLATE` where it has none.
        system_prompt: System message for conversations that have none.
        special_tokens: How names of control tokens in messages are read: as `text`, or as `control` tokens.

    Raises:
        ModelError: The tokenizer is not a fast one, has no end-of-sequence token, or the template is broken.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        chat_template: str | None = None,
        system_prompt: str | None = None,
        special_tokens: str = "text",
    ) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError("the model's tokenizer has no fast version (tokenizer.json), which is needed here")
        if tokenizer.eos_token is None:
            raise ModelError(
                "the model's tokenizer has no end-of-sequence token, so answers would not end: set eos_token"
            )
        self._tokenizer = tokenizer
        self._renderer = Renderer(tokenizer, chat_template, system_prompt, special_tokens)
        self._system_prompt = system_prompt
        self.special_tokens = special_tokens
        """`text` or `control`."""
        turns = self._renderer.turns
        ends = tokenizer.convert_tokens_to_ids(list(turns.end_tokens))
        self.end_tokens: frozenset[int] = frozenset(token for token in ends if token is not None)
        """Tokens that end an answer: the end-of-turn token that is learnt, the token that begins the next turn, and the
        end-of-sequence token."""
        self.end_texts = turns.end_texts
        """Plain text that ends an answer, in templates that begin the next turn with it."""
        self.text_end = TextEnd(tokenizer, turns.end_texts) if turns.end_texts else None
        """Finds `end_texts` in an answer; None if there are none."""
        self._row_checker = RowChecker(turns, system_prompt)
        self.template = self._renderer.template
        """The template in use, as Jinja text."""
        self.is_plain = self._renderer.is_plain
        """Whether `PLAIN_TEMPLATE` is used because the model has no template."""

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 of everything that decides how a conversation is tokenized."""
        backend = json.loads(self._tokenizer.backend_tokenizer.to_str())
        # These two hold the state of the last call; they are not part of the vocabulary.
        backend.pop("padding", None)
        backend.pop("truncation", None)
        parts = [
            VERSION,
            self.template,
            self._system_prompt,
            self._tokenizer.special_tokens_map,
            backend,
            # Names that count as control tokens although the tokenizer does not call them special.
            *self._renderer.turns.marks,
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def encode_batch(self, examples: Sequence[Example]) -> list[Tokens]:
        """Tokenize examples for training; every assistant turn carries loss, with its end-of-turn token.

        Raises:
            DataError: The template refuses a conversation or changes an answer; the message names its source.
        """
        conversations = [Conversation(self._renderer, example) for example in examples]
        hidden = [conversation.hidden for conversation in conversations]
        texts = [conversation.whole() for conversation in conversations]
        prompts = self._tokenize([text.prompt for text in texts], hidden)
        wholes = self._tokenize([text.prompt + text.completion for text in texts], hidden, offsets=True)
        return [self._join(*parts) for parts in zip(texts, hidden, prompts, wholes, strict=True)]

    def _join(self, text: Rendered, hidden: bool, prompt: Encoding, whole: Encoding) -> Tokens:
        """Tokens of an example, given those of its prompt and those of all its text in one piece."""
        end = len(text.prompt) + text.learned
        (before, _), (ids, offsets) = prompt, whole
        start = len(before)
        if ids[:start] != before:
            (_, places), (after, shifted) = self._tokenize([text.prompt, text.completion], [hidden] * 2, offsets=True)
            shift = len(text.prompt)
            ids, offsets = before + after, places + [(first + shift, last + shift) for first, last in shifted]
        spans = [_token_span(text.prompt, offsets, span) for span in text.earlier]
        spans.append((start, _token_span(text.prompt, offsets, (0, end))[1]))
        return Tokens(ids, spans, text.lost)

    def prompt_ids(self, example: Example) -> list[int]:
        """Tokens of everything before the last answer, with the generation prompt; `encode_batch` begins with them."""
        conversation = Conversation(self._renderer, example)
        return self._tokenize([conversation.prompt()], [conversation.hidden])[0][0]

    def rendered_prompt(self, example: Example) -> str:
        """The text that `prompt_ids` tokenizes, with the template's control tokens."""
        return Conversation(self._renderer, example).prompt()

    def prompt_text(self, example: Example) -> str:
        """The prompt for people: the question alone, or all turns before the answer with their roles."""
        *context, _ = example.messages
        if len(context) == 1:
            return context[0].content
        return "\n".join(f"{message.role}: {message.content}{message.extras}" for message in context)

    def answer_text(self, tokens: Sequence[int]) -> str:
        """The tokens of an answer as text, up to its end."""
        ended = (number for number, token in enumerate(tokens) if token in self.end_tokens)
        answer = list(tokens[: next(ended, len(tokens))])
        if self.text_end is not None:
            answer = answer[: self.text_end.kept(answer)]
        text: str = self._tokenizer.decode(answer, skip_special_tokens=True)
        return text.strip()

    def text(self, tokens: Sequence[int]) -> str:
        """Tokens as text, control tokens included."""
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def hides(self, example: Example) -> bool:
        """Whether its messages hold names of control tokens that stay text."""
        return Conversation(self._renderer, example).hidden

    def row_warnings(self, example: Example) -> list[RowWarning]:
        """Warnings about text in its messages that looks like part of a template, or that the template leaves out."""
        return self._row_checker.find(example)

    def _tokenize(self, texts: list[str], hidden: list[bool], *, offsets: bool = False) -> list[Encoding]:
        """Texts as tokens; `hidden` says in which of them names of control tokens are hidden."""
        # The template has put in all special tokens that belong there.
        encodings = self._tokenizer(
            texts,
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            return_offsets_mapping=offsets,
            verbose=False,
        )
        places = encodings["offset_mapping"] if offsets else [[]] * len(texts)
        tokens: list[Encoding] = list(zip(encodings["input_ids"], places, strict=True))
        for number in (number for number, hides in enumerate(hidden) if hides):
            encoding = self._renderer.controls.encode(texts[number])
            tokens[number] = encoding.ids, encoding.offsets
        return tokens


def _token_span(text: str, offsets: list[Span], span: Span) -> Span:
    """The tokens that lie in a span of characters.

    A token that begins before the span counts only if it adds nothing but spaces: many tokenizers join
    a space to the next word.
    """
    start, end = span
    starts = [offset[0] for offset in offsets]
    first = bisect_left(starts, start)
    if first and offsets[first - 1][1] > start and not text[starts[first - 1] : start].strip(" "):
        first -= 1
    return first, max(first, bisect_left(starts, end))
