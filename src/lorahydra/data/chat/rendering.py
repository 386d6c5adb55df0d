"""Conversations as text under a chat template, and where in that text the answers are."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from lorahydra.data.chat.control_tokens import Controls
from lorahydra.data.chat.row_warnings import RowWarning
from lorahydra.data.chat.spans import Span, kept_form, unused_mark
from lorahydra.data.chat.templates import find_template
from lorahydra.data.chat.tool_calls import answer_spans, holds_calls, missing_place
from lorahydra.data.chat.turns import alternatives, find_turns
from lorahydra.data.examples import Example
from lorahydra.errors import DataError, ModelError, library_errors, one_line

__all__ = ["Rendered", "Renderer", "Text"]

Turn = dict[str, Any]
MARK = "\ue000"
"""A character for private use, which no text has by chance."""
REASONING = "reasoning_content"


@dataclass(frozen=True)
class Text:
    """Rendered text."""

    content: str
    hidden: bool
    """Whether names of control tokens in messages are hidden in it: `Controls.encode` tokenizes it then."""


@dataclass(frozen=True)
class Rendered:
    """A rendered example; spans are in characters."""

    prompt: str
    earlier: list[Span]
    """Answers inside the prompt, each with its end of turn."""
    completion: str
    """The last answer with what the template puts around it beyond the prompt."""
    learned: int
    """How many characters of the completion carry loss: up to and with the end of the answer's turn."""
    hidden: bool = False
    """As in `Text`."""
    lost: tuple[RowWarning, ...] = ()
    """What the example holds and the template has no place for."""

    @property
    def learned_text(self) -> str:
        """All that carries loss."""
        return "".join(self.prompt[start:end] for start, end in self.earlier) + self.completion[: self.learned]


class Renderer:
    """A chat template at work.

    Args:
        tokenizer: Of transformers; it knows the template's special tokens.
        chat_template: Jinja text or the path of a file; see `find_template`.
        system_prompt: System message for conversations that have none.
        special_tokens: What names of control tokens in messages are: `text` or `control`.

    Raises:
        ModelError: The template is broken.
    """

    def __init__(
        self, tokenizer: Any, chat_template: str | None, system_prompt: str | None, special_tokens: str
    ) -> None:
        self._tokenizer = tokenizer
        self.template = find_template(tokenizer, chat_template)
        self._system_prompt = system_prompt
        self._try()
        self.turns = find_turns(self._apply, tokenizer)
        """What the template puts around turns."""
        self._control = alternatives(self.turns.control)
        self.controls = Controls(tokenizer, self.turns.control)
        """Tokenizes what was hidden."""
        self._hides = special_tokens == "text"

    def prompt(self, example: Example, source: str | None = None) -> Text:
        """Everything before the last answer, with the generation prompt.

        Raises:
            DataError: The template refuses the conversation; `source` is named.
        """
        if any(REASONING in message.extras for message in example.messages):
            # Whether the prompt holds any is decided by the whole.
            whole = self.whole(example, source)
            return Text(whole.prompt, whole.hidden)
        turns, example, hidden = self._turns(example, source)
        return Text(self._render(turns[:-1], example, source), hidden)

    def hides(self, example: Example) -> bool:
        """Whether it has names of control tokens in messages that are to stay text."""
        return self._turns(example, None)[2]

    def whole(self, example: Example, source: str | None = None) -> Rendered:
        """The example as text.

        Raises:
            DataError: The template refuses the conversation, changes an answer, or has no place for calls of tools;
                `source` is named.
        """
        turns, example, hidden = self._turns(example, source)
        thoughts = [turn[REASONING] for turn in turns if REASONING in turn]
        rendered = self._with_thoughts(turns, example, source) if thoughts else None
        if rendered is None:
            turns = _without_thoughts(turns)
            rendered = self._whole(turns, example, source)
        lost = []
        if thoughts and not all(thought.strip() in rendered.learned_text for thought in thoughts):
            lost.append(RowWarning.NO_THINKING)
        if example.tools and rendered.prompt == self._render(turns[:-1], replace(example, tools=""), source):
            lost.append(RowWarning.NO_TOOLS)
        learned = [message.learned for message in example.messages if message.role == "assistant"]
        earlier = [span for span, carries in zip(rendered.earlier, learned[:-1], strict=True) if carries]
        return replace(rendered, earlier=earlier, lost=tuple(lost), hidden=hidden)

    def _with_thoughts(self, turns: list[Turn], example: Example, source: str | None) -> Rendered | None:
        """The example with what was thought before its answers; None where that of the last one would not be learnt."""
        try:
            rendered = self._whole(turns, example, source)
        except DataError:
            return None
        last = turns[-1].get(REASONING, "").strip()
        return rendered if last in rendered.completion[: rendered.learned] else None

    def _whole(self, turns: list[Turn], example: Example, source: str | None) -> Rendered:
        prompt = self._render(turns[:-1], example, source)
        if holds_calls(turns):
            return self._with_calls(turns, prompt, example, source)
        answer, ending = self._answer(turns, prompt, example, source)
        end_of_turn = self._end_of_turn(ending)
        if not end_of_turn:
            # Nothing in the template says that the answer is over, so the model could not learn to stop.
            end_of_turn = self._tokenizer.eos_token
            ending = end_of_turn + ending
        return Rendered(
            prompt=prompt,
            earlier=self._earlier(turns[:-1], prompt, end_of_turn, example, source),
            completion=answer + ending,
            learned=len(answer) + len(end_of_turn),
        )

    def _with_calls(self, turns: list[Turn], prompt: str, example: Example, source: str | None) -> Rendered:
        def render(turns: list[Turn], *, prompting: bool, thinking: bool = False) -> str:
            return self._render(turns, example, source, prompting=prompting, thinking=thinking)

        if missing := missing_place(turns, render):
            raise DataError(
                f"the model's chat template has no place for {missing}, which this conversation holds: set "
                "model.chat_template to one that has, or leave such rows out",
                path=source,
                line=example.line,
            )
        text = render(turns, prompting=False)
        end_of_turn = self._end_of_turn(self._plain_ending)
        spans = answer_spans(turns, text, render, end_of_turn, self._end_of_turn)
        if spans is None:
            raise _changed(example, source)
        completion, learned = text[len(prompt) :], spans[-1][1] - len(prompt)
        if not self._end_of_turn(completion):
            completion += self._tokenizer.eos_token
            learned = len(completion)
        return Rendered(prompt=prompt, earlier=spans[:-1], completion=completion, learned=learned)

    @cached_property
    def _plain_ending(self) -> str:
        """What follows an answer that is just text."""
        turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": MARK}]
        return self._apply(turns, prompting=False).rpartition(MARK)[2]

    @cached_property
    def _takes_nothing(self) -> bool:
        """Whether an empty system message means something: the template has one of its own, and takes others."""
        turns = [{"role": "system", "content": ""}, {"role": "user", "content": "Hello"}]
        try:
            return self._apply(turns, prompting=True) is not None and not self.template.is_plain
        except Exception:  # a template is a program that a user brings
            return False

    def _answer(self, turns: list[Turn], prompt: str, example: Example, source: str | None) -> tuple[str, str]:
        """The last answer as it follows the prompt, and what the template puts after it."""
        whole = self._render(turns, example, source, prompting=False)
        answer, mark = turns[-1]["content"], unused_mark(whole)
        marked = [*turns[:-1], {**turns[-1], "content": mark}]
        ending = self._render(marked, example, source, prompting=False).rpartition(mark)[2]
        if whole.startswith(prompt):
            rest = whole[len(prompt) :]
            if kept_form(answer, lambda form: rest.endswith(form + ending)) is not None:
                # With whatever stands before the answer and not in the prompt: the model has to make it, too.
                return rest.removesuffix(ending), ending
        elif "<think>" not in answer:
            # The generation prompt holds more than the history: the beginning of a thinking block.
            kept = kept_form(answer, lambda form: whole.endswith(form + ending))
            if kept is not None:
                return kept, ending
        raise _changed(example, source)

    def _end_of_turn(self, ending: str) -> str:
        """The beginning of `ending` up to its first control token; empty if it has none."""
        match = self._control.search(ending)
        return ending[: match.end()] if match else ""

    def _earlier(
        self, turns: list[Turn], prompt: str, end_of_turn: str, example: Example, source: str | None
    ) -> list[Span]:
        """Where in the prompt the earlier answers are, found by rendering with marks in their place."""
        answers = [turn["content"] for turn in turns if turn["role"] == "assistant"]
        if not answers:
            return []
        mark = unused_mark(prompt)
        marked = [{**turn, "content": mark} if turn["role"] == "assistant" else turn for turn in turns]
        first, *literals = self._render(marked, example, source).split(mark)
        if len(literals) != len(answers) or not prompt.startswith(first):
            raise _changed(example, source)
        spans = []
        place = len(first)
        for answer, literal in zip(answers, literals, strict=True):
            start = place

            def fits(form: str, start: int = start, then: str = literal) -> bool:
                return prompt.startswith(form + then, start)

            # Some templates leave the thinking out of all answers but the last.
            kept = kept_form(answer, fits) or kept_form(answer.rpartition("</think>")[2], fits)
            if kept is None:
                raise _changed(example, source)
            end = start + len(kept)
            if literal.startswith(end_of_turn):
                spans.append((start, end + len(end_of_turn)))
            else:
                directly_after = self._control.match(literal)
                spans.append((start, end + (directly_after.end() if directly_after else 0)))
            place = end + len(literal)
        return spans

    def _turns(self, example: Example, source: str | None) -> tuple[list[Turn], Example, bool]:
        """The turns as the template gets them, the example with such tools, and whether names are hidden in them."""
        turns: list[Turn] = [
            {"role": message.role, "content": message.content, **message.fields} for message in example.messages
        ]
        if self._system_prompt is not None and turns[0]["role"] != "system":
            turns.insert(0, {"role": "system", "content": self._system_prompt})
        if turns[0]["role"] == "system" and not turns[0]["content"].strip() and not self._takes_nothing:
            del turns[0]
        if not self._hides:
            return turns, example, False
        try:
            hidden, tools = self.controls.hide(turns), self.controls.hide(example.tools)
        except ValueError as error:
            raise DataError(f"cannot be read as text: {error}", path=source, line=example.line) from error
        return hidden, replace(example, tools=tools), hidden != turns or tools != example.tools

    def _apply(
        self, turns: list[Turn], prompting: bool, *, tools: list[Any] | None = None, thinking: bool = False
    ) -> str:
        # Templates without a thinking mode ignore the last argument.
        text: str = self._tokenizer.apply_chat_template(
            turns,
            tools=tools,
            chat_template=self.template.text,
            tokenize=False,
            add_generation_prompt=prompting,
            enable_thinking=thinking,
        )
        return text

    def _render(
        self,
        turns: list[Turn],
        example: Example,
        source: str | None,
        *,
        prompting: bool = True,
        thinking: bool = False,
    ) -> str:
        tools = json.loads(example.tools) if example.tools else None

        def refused(error: Exception) -> DataError:
            hint = ", or unset data.system_prompt" if self._system_prompt else ""
            return DataError(
                f"the model's chat template refuses this conversation ({one_line(error)}): change it{hint}",
                path=source,
                line=example.line,
            )

        with library_errors(refused):
            return self._apply(turns, prompting, tools=tools, thinking=thinking)

    def _try(self) -> None:
        """Refuse a template that cannot even do a made-up conversation."""
        turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": MARK}]
        # A template is a program: it may fail in any way.
        with library_errors(lambda error: ModelError(f"the chat template is broken: {one_line(error)}; {self._where}")):
            self._apply(turns[:1], True)
            found = self._apply(turns, False).count(MARK)
        if found != 1:
            raise ModelError(f"the chat template does not keep the assistant's text once: {self._where}")

    @property
    def _where(self) -> str:
        name = self._tokenizer.name_or_path
        return f"check model.chat_template{f' or {name}' if name else ''}"


def _without_thoughts(turns: list[Turn]) -> list[Turn]:
    return [{key: value for key, value in turn.items() if key != REASONING} for turn in turns]


def _changed(example: Example, source: str | None) -> DataError:
    return DataError(
        "the model's chat template changes an answer of this conversation (does it hold a thinking "
        "block?), so training would differ from generation: change the answer, or set model.chat_template",
        path=source,
        line=example.line,
    )
