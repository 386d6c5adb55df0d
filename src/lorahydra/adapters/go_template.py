"""A chat template as Ollama's template in Go, derived from what the Jinja template renders.

A template is taken apart by rendering made-up conversations: what stands before the first message, after a question
that has been answered, after an answer, and after the last question. Conversations that are put together from these
parts must equal what Jinja renders, or there is no such template in Go.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from lorahydra.data.chat.chat_format import ChatFormat
from lorahydra.data.examples import Example, Message
from lorahydra.errors import LorahydraError, ModelError

__all__ = ["derive_template"]

SYSTEM, *TURNS = (chr(0xE020 + number) for number in range(6))
"""Characters for private use, which no template strips or has."""
QUESTION = "Is 2 < 3, or {{ x }}?"
CONTENT = "{{ $m.Content }}"
IS_USER = 'eq $m.Role "user"'
LAST = "eq (len (slice $.Messages $i)) 1"


@dataclass(frozen=True)
class TemplateParts:
    """The text between the messages of any conversation that ends with a question."""

    head: str
    """Before the first message, if there is no system message."""
    answered: str
    """Between a question and its answer."""
    asked: str
    """Between an answer and the next question."""
    tail: str
    """After the last question."""
    before_system: str
    after_system: str
    system_is_late: bool
    """Whether the system message precedes the last question instead of the first."""

    def render(self, system: str, turns: Sequence[str]) -> str:
        """A conversation whose turns are questions and answers by turns; Ollama renders it from `go` likewise."""
        shown = f"{self.before_system}{system}{self.after_system}"
        text = self.head if self.system_is_late or not system else shown
        for number, turn in enumerate(turns):
            is_last = number == len(turns) - 1
            if is_last and system and self.system_is_late:
                text += shown
            text += turn + (self.tail if is_last else self.asked if number % 2 else self.answered)
        return text

    def go(self) -> str:
        """The template, as Go's `text/template` reads it."""
        system = f"{_literal(self.before_system)}{{{{ $.System }}}}{_literal(self.after_system)}"
        head, late = _literal(self.head), ""
        if self.system_is_late:
            late = _choice(f"and $.System ({LAST})", system)
        else:
            head = _choice("$.System", system, head)
        question = late + CONTENT + _choice(LAST, _literal(self.tail), _literal(self.answered))
        answer = _choice('eq $m.Role "assistant"', CONTENT + _literal(self.asked))
        return f"{head}{{{{ range $i, $m := .Messages }}}}{_choice(IS_USER, question, answer)}{{{{ end }}}}"


def derive_template(chat: ChatFormat, leave_out: str = "") -> str:
    """The template of a chat format in Go.

    Args:
        chat: The chat format; its own system message is put where a conversation has none.
        leave_out: A token that the program puts before every prompt by itself.

    Raises:
        ModelError: What the template renders does not consist of fixed text around the messages.
    """
    try:
        parts = _take_apart(chat)
        fits = all(parts.render(system, turns) == _rendered(chat, system, turns) for system, turns in _conversations())
    except (LorahydraError, ValueError) as error:
        raise _not_derived() from error
    if not fits:
        raise _not_derived()
    begins = {parts.head, parts.head if parts.system_is_late else parts.before_system}
    if leave_out and all(text.startswith(leave_out) for text in begins):
        short = {name: getattr(parts, name).removeprefix(leave_out) for name in ("head", "before_system")}
        parts = replace(parts, **short)
    return parts.go()


def _take_apart(chat: ChatFormat) -> TemplateParts:
    head, answered, asked, answered_2, asked_2, tail = _split(_rendered(chat, "", TURNS), TURNS)
    if (answered, asked) != (answered_2, asked_2):
        raise ValueError("the text between messages depends on their place")
    text = _rendered(chat, SYSTEM, TURNS)
    system_is_late = text.index(SYSTEM) > text.index(TURNS[0])
    before = TURNS[-1] if system_is_late else TURNS[0]
    beginning, _, _ = text.partition(before)
    before_system, after_system = _split(beginning, [SYSTEM])
    if system_is_late:
        # What precedes every question has been written already.
        before_system = before_system.rpartition(TURNS[-2])[2].removeprefix(asked)
    return TemplateParts(head, answered, asked, tail, before_system, after_system, system_is_late)


def _split(text: str, marks: Sequence[str]) -> list[str]:
    """The text around marks, each of which it has once and in this order."""
    parts = re.split("|".join(map(re.escape, marks)), text)
    if len(parts) != len(marks) + 1:
        raise ValueError("a message is not shown once")
    return parts


def _rendered(chat: ChatFormat, system: str, turns: Sequence[str]) -> str:
    messages = [Message("system", system)] if system else []
    messages += [Message("assistant" if number % 2 else "user", turn) for number, turn in enumerate(turns)]
    return chat.rendered_prompt(Example((*messages, Message("assistant", "")), line=0))


def _conversations() -> Iterator[tuple[str, list[str]]]:
    for system in ("", "Be brief.\nBe kind."):
        for turns in (["Hello"], [QUESTION, "Yes.\n\nSurely."] * 2 + ["Why?"], ["A", "B", "C"]):
            yield system, turns


def _choice(condition: str, text: str, otherwise: str = "") -> str:
    more = f"{{{{ else }}}}{otherwise}" if otherwise else ""
    return f"{{{{ if {condition} }}}}{text}{more}{{{{ end }}}}"


def _literal(text: str) -> str:
    """Text that Go prints as it is."""
    return text.replace("{{", '{{ "{{" }}')


def _not_derived() -> ModelError:
    return ModelError(
        "the model's chat template cannot be written as a template of Ollama: its text depends on more than the order "
        "of system message, questions and answers; serve the adapter with --gguf or --vllm, which read Jinja"
    )
