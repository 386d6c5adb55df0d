"""Renders conversations with a chat template, and knows what the template puts around turns."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from lorahydra.data.chat.control_tokens import ControlTokens
from lorahydra.data.chat.templates import find_template
from lorahydra.data.chat.turns import alternatives, find_turns
from lorahydra.errors import ModelError, library_errors, one_line

__all__ = ["Renderer", "Turn"]

Turn = dict[str, Any]
MARK = "\ue000"
"""A character for private use, which no text has by chance."""
HELLO: list[Turn] = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": MARK}]


class Renderer:
    """Renders turns with a chat template; the arguments are those of `ChatFormat`.

    Raises:
        ModelError: The template is broken.
    """

    def __init__(
        self, tokenizer: Any, chat_template: str | None, system_prompt: str | None, special_tokens: str
    ) -> None:
        self.tokenizer = tokenizer
        self.template = find_template(tokenizer, chat_template)
        self.is_plain = chat_template is None and not tokenizer.chat_template
        """Whether the template is `PLAIN_TEMPLATE`, because the model has none."""
        self.system_prompt = system_prompt
        self._try()
        self.turns = find_turns(self.apply, tokenizer)
        """What the template puts around turns."""
        self.control = alternatives(self.turns.control)
        """Finds control tokens."""
        self.controls = ControlTokens(tokenizer, self.turns.control)
        """Hides names of control tokens, and tokenizes text in which they are hidden."""
        self.hides_names = special_tokens == "text"

    def apply(
        self, turns: list[Turn], prompting: bool, *, tools: list[Any] | None = None, thinking: bool = False
    ) -> str:
        """The turns under the template; raises what Jinja raises."""
        # Templates without a thinking mode ignore the last argument.
        text: str = self.tokenizer.apply_chat_template(
            turns,
            tools=tools,
            chat_template=self.template,
            tokenize=False,
            add_generation_prompt=prompting,
            enable_thinking=thinking,
        )
        return text

    @cached_property
    def plain_ending(self) -> str:
        """What follows an answer that is just text."""
        return self.apply(HELLO, prompting=False).rpartition(MARK)[2]

    @cached_property
    def takes_empty_system(self) -> bool:
        """Whether an empty system message is passed on: the template accepts it, and may have a default to replace."""
        try:
            self.apply([{"role": "system", "content": ""}, HELLO[0]], prompting=True)
        except Exception:  # a template is a program that a user brings
            return False
        return not self.is_plain

    def end_of_turn(self, ending: str) -> str:
        """The beginning of `ending` up to its first control token; empty if it has none."""
        match = self.control.search(ending)
        return ending[: match.end()] if match else ""

    def _try(self) -> None:
        """Refuse a template that cannot even render a made-up conversation."""
        name = self.tokenizer.name_or_path
        where = f"check model.chat_template{f' or {name}' if name else ''}"
        # A template is a program: it may fail in any way.
        with library_errors(lambda error: ModelError(f"the chat template is broken: {one_line(error)}; {where}")):
            self.apply(HELLO[:1], True)
            count = self.apply(HELLO, False).count(MARK)
        if count != 1:
            raise ModelError(f"the chat template must print the assistant's text exactly once: {where}")
