"""Text that looks as if a chat template had written it, and what a template loses: rows are counted, not refused."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from lorahydra.data.chat.turns import Turns, alternatives

if TYPE_CHECKING:
    from lorahydra.data.examples import Example

__all__ = ["RowChecker", "RowWarning"]


class RowWarning(StrEnum):
    """Kinds of rows that a report warns about; each value completes the sentence "N rows …"."""

    RENDERED = "hold text with which a chat template begins a turn"
    CONTROL = "hold names of the model's control tokens"
    CUT = "have an answer that holds text which ends an answer in this chat format"
    NO_SYSTEM = "have a system message that the model's chat template leaves out"
    NO_TOOLS = "offer tools that the model's chat template leaves out"
    NO_THINKING = "have reasoning_content that the model's chat template does not put between prompt and answer"

    def warning(self, rows: str, where: str, special_tokens: str) -> str:
        """One line about rows such as `train: 3 of 20 rows`, of which `where` is the first."""
        meaning = {
            RowWarning.RENDERED: "if they are rendered conversations, give the messages themselves (see docs/data.md)",
            RowWarning.CONTROL: "they stay text (data.special_tokens=control makes control tokens of them)"
            if special_tokens == "text"
            else "they are control tokens, and an answer ends at the first one that ends a turn",
            RowWarning.CUT: "what follows it is learnt, but neither scored nor shown",
            RowWarning.NO_SYSTEM: "nothing of it is learnt; put it into the user's message, or set model.chat_template",
            RowWarning.NO_TOOLS: "the model does not see them; set model.chat_template",
            RowWarning.NO_THINKING: "it is not learnt",
        }[self]
        return f"{rows} {self.value} (first: {where}): {meaning}"


class RowChecker:
    """Finds what a report warns about in the messages of an example."""

    def __init__(self, turns: Turns, system_prompt: str | None) -> None:
        self._control = alternatives(turns.control)
        self._openings = alternatives(turns.openings)
        self._end_texts = alternatives(turns.end_texts) if turns.end_texts else None
        self._keeps_system = turns.keeps_system
        self._system_prompt = bool(system_prompt)

    def find(self, example: Example) -> list[RowWarning]:
        """The warnings about an example; a rendered conversation gets none for its control tokens."""
        warnings = []
        # Text may begin a turn where a message begins.
        texts = [f"\n{message.content}" for message in example.messages]
        if any(map(self._openings.search, texts)):
            warnings.append(RowWarning.RENDERED)
        elif any(map(self._control.search, texts)):
            warnings.append(RowWarning.CONTROL)
        if self._end_texts is not None and self._end_texts.search(texts[-1]):
            warnings.append(RowWarning.CUT)
        if not self._keeps_system and (self._system_prompt or example.messages[0].role == "system"):
            warnings.append(RowWarning.NO_SYSTEM)
        return warnings
