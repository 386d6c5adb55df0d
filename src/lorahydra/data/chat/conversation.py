"""One conversation as text under a chat template, and where in that text the answers are."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from lorahydra.data.chat.rendering import Renderer, Turn
from lorahydra.data.chat.row_warnings import RowWarning
from lorahydra.data.examples import Example
from lorahydra.errors import DataError, library_errors, one_line

__all__ = ["Conversation", "Rendered", "Span"]

REASONING = "reasoning_content"
Span = tuple[int, int]
"""Start and end of a part; the end is exclusive."""


@dataclass(frozen=True)
class Rendered:
    """A rendered example; spans are in characters."""

    prompt: str
    earlier: list[Span]
    """Answers inside the prompt, each with its end of turn."""
    completion: str
    """The last answer with what the template puts around it beyond the prompt."""
    learned: int
    """How many characters of the completion carry loss: up to and including the end of the answer's turn."""
    lost: tuple[RowWarning, ...] = ()
    """What the example contains but the template has no place for."""


class Conversation:
    """One example, rendered with a template."""

    def __init__(self, renderer: Renderer, example: Example) -> None:
        self._renderer = renderer
        self._example = example
        self.turns: list[Turn] = [
            {"role": message.role, "content": message.content, **message.fields} for message in example.messages
        ]
        """The turns as the template gets them."""
        if renderer.system_prompt is not None and self.turns[0]["role"] != "system":
            self.turns.insert(0, {"role": "system", "content": renderer.system_prompt})
        first = self.turns[0]
        if first["role"] == "system" and not first["content"].strip() and not renderer.takes_empty_system:
            del self.turns[0]
        self._tools = example.tools
        self.hidden = False
        """Whether names of control tokens are hidden in the turns or tools: `ControlTokens.encode` tokenizes then."""
        if renderer.hides_names:
            before = (self.turns, self._tools)
            try:
                self.turns, self._tools = renderer.controls.hide(before)
            except ValueError as error:
                raise self._error(f"cannot be read as text: {error}") from error
            self.hidden = (self.turns, self._tools) != before

    def prompt(self) -> str:
        """Everything before the last answer, with the generation prompt.

        Raises:
            DataError: The template refuses the conversation.
        """
        if any(REASONING in turn for turn in self.turns):
            # The whole conversation decides whether the prompt holds any reasoning.
            return self.whole().prompt
        return self.render(self.turns[:-1])

    def whole(self) -> Rendered:
        """The example as text.

        Raises:
            DataError: The template refuses the conversation, changes an answer, or has no place for tool calls.
        """
        turns = self.turns
        thoughts = [turn[REASONING] for turn in turns if REASONING in turn]
        rendered = self._with_thoughts() if thoughts else None
        if rendered is None:
            turns = [{key: value for key, value in turn.items() if key != REASONING} for turn in turns]
            rendered = self._rendered(turns)
        lost = []
        answers = [rendered.prompt[start:end] for start, end in rendered.earlier]
        learned_text = "".join([*answers, rendered.completion[: rendered.learned]])
        if not all(thought.strip() in learned_text for thought in thoughts):
            lost.append(RowWarning.NO_THINKING)
        if self._tools and rendered.prompt == self.render(turns[:-1], tools=""):
            lost.append(RowWarning.NO_TOOLS)
        learned = [message.learned for message in self._example.messages if message.role == "assistant"]
        earlier = [span for span, carries in zip(rendered.earlier, learned[:-1], strict=True) if carries]
        return replace(rendered, earlier=earlier, lost=tuple(lost))

    def _with_thoughts(self) -> Rendered | None:
        """The example with the reasoning before its answers; None if that of the last one would not be learnt."""
        try:
            rendered = self._rendered(self.turns)
        except DataError:
            return None
        last = self.turns[-1].get(REASONING, "").strip()
        return rendered if last in rendered.completion[: rendered.learned] else None

    def _rendered(self, turns: list[Turn]) -> Rendered:
        prompt = self.render(turns[:-1])
        if any(turn["role"] == "tool" or "tool_calls" in turn for turn in turns):
            return self._with_calls(turns, prompt)
        answer, ending = self._answer(turns, prompt)
        end_of_turn = self._renderer.end_of_turn(ending)
        if not end_of_turn:
            # Nothing in the template says that the answer is over, so the model could not learn to stop.
            end_of_turn = self._renderer.tokenizer.eos_token
            ending = end_of_turn + ending
        earlier = self._earlier(turns[:-1], prompt, end_of_turn)
        return Rendered(prompt, earlier, completion=answer + ending, learned=len(answer) + len(end_of_turn))

    def _with_calls(self, turns: list[Turn], prompt: str) -> Rendered:
        if missing := self._missing_place(turns):
            raise self._error(
                f"the model's chat template has no place for {missing}, which this conversation holds: set "
                "model.chat_template to one that has it, or leave such rows out"
            )
        text = self.render(turns, prompting=False)
        spans = [
            self._answer_span(turns, number, text) for number, turn in enumerate(turns) if turn["role"] == "assistant"
        ]
        completion, learned = text[len(prompt) :], spans[-1][1] - len(prompt)
        if not self._renderer.end_of_turn(completion):
            completion += self._renderer.tokenizer.eos_token
            learned = len(completion)
        return Rendered(prompt, spans[:-1], completion, learned)

    def _missing_place(self, turns: list[Turn]) -> str | None:
        """What the template leaves out, in a few words: names, arguments or results of calls; None if nothing."""
        mark = _unused_mark(self.render(turns, prompting=False))
        marks: dict[str, list[str]] = {"tool calls": [], "tool results": []}

        def marked(kind: str) -> str:
            marks[kind].append(f"{mark}{sum(map(len, marks.values()))}{mark}")
            return marks[kind][-1]

        changed = []
        for turn in turns:
            if turn["role"] == "tool":
                turn = {**turn, "content": marked("tool results")}
            elif "tool_calls" in turn:
                calls = []
                for call in turn["tool_calls"]:
                    name, argument = marked("tool calls"), marked("tool calls")
                    calls.append({**call, "function": {"name": name, "arguments": {"x": argument}}})
                turn = {**turn, "tool_calls": calls}
            changed.append(turn)
        text = self.render(changed, prompting=False)
        return next((kind for kind, parts in marks.items() if any(part not in text for part in parts)), None)

    def _answer_span(self, turns: list[Turn], number: int, text: str) -> Span:
        """Where one of the assistant's turns is in the text of all turns, including the end of the turn."""
        start = self._answer_start(turns[:number], text, last=number == len(turns) - 1)
        answer, following = turns[number]["content"], turns[number + 1 :]
        if end_of_turn := self._renderer.end_of_turn(self._renderer.plain_ending):
            place = text.find(end_of_turn, start)
            end = place + len(end_of_turn) if place >= 0 else start
        else:
            end = start + len(self._renderer.end_of_turn(text[start:])) or len(text)
        if end == start or (answer and _kept_form(answer, text[start:end].__contains__) is None):
            raise self._changed()
        if following and following[0]["role"] != "assistant" and "tool_calls" not in following[0]:
            # The span would hold some of the next turn.
            mark = _unused_mark("".join(str(turn) for turn in turns))
            changed = [*turns[: number + 1], {**following[0], "content": mark}, *following[1:]]
            if 0 <= self.render(changed, prompting=False).find(mark) < end:
                raise self._changed()
        return start, end

    def _answer_start(self, before: list[Turn], text: str, *, last: bool) -> int:
        """Where the answer to `before` begins: after the generation prompt, which may hold more than the history."""
        for thinking in (False,) if last else (False, True):
            prompt = self.render(before, thinking=thinking)
            if text.startswith(prompt):
                return len(prompt)
        raise self._changed()

    def _answer(self, turns: list[Turn], prompt: str) -> tuple[str, str]:
        """The last answer as it follows the prompt, and what the template puts after it."""
        whole = self.render(turns, prompting=False)
        answer, mark = turns[-1]["content"], _unused_mark(whole)
        marked = [*turns[:-1], {**turns[-1], "content": mark}]
        ending = self.render(marked, prompting=False).rpartition(mark)[2]
        if whole.startswith(prompt):
            rest = whole[len(prompt) :]
            if _kept_form(answer, lambda form: rest.endswith(form + ending)) is not None:
                # Includes what precedes the answer but is not in the prompt: the model has to write that too.
                return rest.removesuffix(ending), ending
        elif "<think>" not in answer:
            # The generation prompt holds more than the history: the beginning of a thinking block.
            kept = _kept_form(answer, lambda form: whole.endswith(form + ending))
            if kept is not None:
                return kept, ending
        raise self._changed()

    def _earlier(self, turns: list[Turn], prompt: str, end_of_turn: str) -> list[Span]:
        """Where in the prompt the earlier answers are, found by rendering with marks in their place."""
        answers = [turn["content"] for turn in turns if turn["role"] == "assistant"]
        if not answers:
            return []
        mark = _unused_mark(prompt)
        marked = [{**turn, "content": mark} if turn["role"] == "assistant" else turn for turn in turns]
        first, *literals = self.render(marked).split(mark)
        if len(literals) != len(answers) or not prompt.startswith(first):
            raise self._changed()
        spans = []
        place = len(first)
        for answer, literal in zip(answers, literals, strict=True):
            fits = partial(_follows, prompt, place, literal)
            # Some templates leave the thinking out of all answers but the last.
            kept = _kept_form(answer, fits) or _kept_form(answer.rpartition("</think>")[2], fits)
            if kept is None:
                raise self._changed()
            end = place + len(kept)
            if literal.startswith(end_of_turn):
                spans.append((place, end + len(end_of_turn)))
            else:
                directly_after = self._renderer.control.match(literal)
                spans.append((place, end + (directly_after.end() if directly_after else 0)))
            place = end + len(literal)
        return spans

    def render(
        self, turns: list[Turn], *, prompting: bool = True, thinking: bool = False, tools: str | None = None
    ) -> str:
        """Turns of the conversation as text; `tools` in place of its own.

        Raises:
            DataError: The template refuses them.
        """
        offered = self._tools if tools is None else tools

        def refused(error: Exception) -> DataError:
            hint = ", or unset data.system_prompt" if self._renderer.system_prompt else ""
            return self._error(
                f"the model's chat template refuses this conversation ({one_line(error)}): change it{hint}"
            )

        with library_errors(refused):
            parsed = json.loads(offered) if offered else None
            return self._renderer.apply(turns, prompting, tools=parsed, thinking=thinking)

    def _error(self, message: str) -> DataError:
        return DataError(message, path=self._example.source or None, line=self._example.line)

    def _changed(self) -> DataError:
        return self._error(
            "the model's chat template changes an answer of this conversation (does it hold a thinking block?), so "
            "training would differ from generation: change the answer, or set model.chat_template"
        )


def _kept_form(answer: str, fits: Callable[[str], bool]) -> str | None:
    """The form in which a template kept an answer: as it is, or without white space around it."""
    forms = (answer, answer.strip(), answer.strip("\n"), answer.lstrip("\n"), answer.lstrip(), answer.rstrip())
    return next((form for form in forms if fits(form)), None)


def _unused_mark(text: str) -> str:
    """A mark that does not occur in `text` and that no template strips: characters for private use."""
    mark = "\ue000"
    while mark in text:
        mark += "\ue001"
    return mark


def _follows(prompt: str, place: int, literal: str, form: str) -> bool:
    """Whether a text stands at a place of the prompt with the literal behind it."""
    return prompt.startswith(form + literal, place)
