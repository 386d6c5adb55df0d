"""A conversation on the terminal with an adapter, or with it and its base model."""

from __future__ import annotations

import contextlib
import re
import sys
from typing import TYPE_CHECKING

import click

from lorahydra.cli.showing import note, printable
from lorahydra.data.examples import Message
from lorahydra.errors import LorahydraError
from lorahydra.utils.interrupts import forget, noticed

if TYPE_CHECKING:
    from lorahydra.inference.adapted_model import AdaptedModel, Conversation

__all__ = ["chat"]

HELP = "/reset forgets the conversation, /exit or Ctrl-D ends, Ctrl-C stops an answer."
PROMPT = "> "


def chat(model: AdaptedModel, *, max_new_tokens: int | None, compare: bool, tuned: bool) -> None:
    """Answer line by line, with the conversation so far, until the user ends it.

    With `compare`, the base model's answer is shown first, and the tuned one is kept in the conversation.
    """
    # Line editing and a history of the input, if this Python has readline.
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401
    note(f"Chat with {'the adapter on ' if tuned else ''}{model.base.source}. {HELP}")
    history: Conversation = ()
    while (line := _read()) is not None:
        text = line.strip()
        if text in ("/exit", "/quit"):
            return
        if text == "/reset":
            history = ()
            note("The conversation is forgotten.")
        elif re.fullmatch(r"/\w+", text):
            note(f"{text} is not a command: {HELP}")
        elif text:
            history = _turn(model, (*history, Message("user", text)), max_new_tokens, compare, tuned)


def _turn(
    model: AdaptedModel, conversation: Conversation, max_new_tokens: int | None, compare: bool, tuned: bool
) -> Conversation:
    """The conversation with the answer added; without an answer, the question is removed as well."""
    try:
        with noticed():
            if compare:
                note("untuned:")
                click.echo(printable(model.answer([conversation], max_new_tokens=max_new_tokens, tuned=False)[0]))
                note("tuned:")
            [answer] = model.answer([conversation], max_new_tokens=max_new_tokens, tuned=tuned)
    except KeyboardInterrupt:
        forget()
        note("Stopped: the question is forgotten. Ctrl-C again ends the chat.")
        return conversation[:-1]
    except LorahydraError as error:
        note(f"{error}; /reset starts over")
        return conversation[:-1]
    click.echo(printable(answer))
    return (*conversation, Message("assistant", answer))


def _read() -> str | None:
    """The next line; None at the end."""
    while True:
        try:
            # The prompt is not an answer: if answers go to a file, it stays on the terminal.
            if not sys.stdout.isatty():
                click.echo(PROMPT, nl=False, err=True)
            line = input(PROMPT if sys.stdout.isatty() else "")
            line.encode()
        except EOFError:
            note("")
            return None
        except UnicodeError:
            note("That was not UTF-8 text.")
            continue
        return line
