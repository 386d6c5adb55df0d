"""Which rows of a split fit: one rule for `data.max_length`, the model's context, and the room for an answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Fit"]


@dataclass(frozen=True)
class Fit:
    """How the rows of a split fit the limits.

    Args:
        lengths: Tokens of prompt and answer together; shape (rows,).
        prompts: Tokens of the prompt alone; shape (rows,).
        loss: Tokens with loss that remain when a row is cut to `limit`; shape (rows,).
        max_length: `data.max_length`.
        overlong: `data.overlong`: `error`, `drop` or `truncate`.
        window: Tokens that the model takes at most; None where it is not known.
        max_new_tokens: Room for an answer after the prompt; 0 for a split that is not answered.
    """

    lengths: npt.NDArray[np.int64]
    prompts: npt.NDArray[np.int64]
    loss: npt.NDArray[np.int64]
    max_length: int
    overlong: str
    window: int | None
    max_new_tokens: int

    @staticmethod
    def limit(max_length: int, window: int | None) -> int:
        """Tokens that a row may have."""
        return max_length if window is None else min(max_length, window)

    @property
    def over(self) -> npt.NDArray[np.bool_]:
        """Rows that are too long to be learnt as a whole."""
        return self.lengths > self.limit(self.max_length, self.window)

    @property
    def without_room(self) -> npt.NDArray[np.bool_]:
        """Rows whose prompt leaves no room for an answer of `max_new_tokens`."""
        if self.window is None or not self.max_new_tokens:
            return np.zeros(len(self.lengths), bool)
        return self.prompts + self.max_new_tokens > self.window

    @property
    def faults(self) -> npt.NDArray[np.int64]:
        """Rows that `data.overlong=error` refuses, ascending."""
        return np.flatnonzero(self.over | self.without_room)

    @property
    def learned(self) -> npt.NDArray[np.int64]:
        """Rows that loss is computed on, ascending; `truncate` may leave no token of an answer in a row."""
        fits = ~self.over if self.overlong != "truncate" else self.loss > 0
        return np.flatnonzero(fits & ~self.without_room)

    @property
    def answered(self) -> npt.NDArray[np.int64]:
        """Rows that are answered and scored, ascending: a prompt is never cut, since it would ask something else."""
        fits = ~self.over | (self.overlong == "truncate")
        return np.flatnonzero(fits & ~self.without_room)

    @property
    def used(self) -> npt.NDArray[np.int64]:
        """Rows that the split keeps, ascending: the answered ones of a split that is answered, else the learnt ones."""
        return self.answered if self.max_new_tokens else self.learned

    @property
    def cut(self) -> int:
        """How many of the rows with loss are cut."""
        return int(self.over[self.learned].sum())

    def fault(self, row: int) -> str:
        """What is wrong with one of the rows in `faults`."""
        if self.over[row]:
            return f"{self.lengths[row]} tokens, over {self._limit_name}"
        return f"{self.prompts[row]} tokens of prompt and {self._room}"

    def ways_out(self, row: int) -> str:
        """What the user can do about it."""
        if not self.over[row]:
            return "lower evaluation.max_new_tokens, or set data.overlong=drop"
        longer = "" if self._by_window else "raise data.max_length, or "
        return f"{longer}set data.overlong=drop or data.overlong=truncate"

    def nothing_left(self) -> str:
        """Why no row is left, and what the user can do about it."""
        row = int(np.argmin(self.lengths))
        if self.without_room[row]:
            return f"the shortest row has {self.fault(row)}: lower evaluation.max_new_tokens"
        return f"the shortest one has {self.fault(row)}: raise data.max_length"

    def warnings(self, split: str) -> Iterator[str]:
        """Which rows of the split are left out or cut, in one line for each reason."""
        total = len(self.lengths)
        if self.overlong == "error":
            return
        left_out = np.ones(total, bool)
        left_out[self.used] = False
        if no_room := int((left_out & self.without_room).sum()):
            yield f"{split}: {no_room} of {total} rows are left out: the prompt and {self._room}"
        if long := int((left_out & ~self.without_room).sum()):
            what = "longer than" if self.overlong == "drop" else "no token of an answer is left within"
            yield f"{split}: {long} of {total} rows are left out: {what} {self._limit_name} tokens"
        if self.cut:
            scored = ", and answered with the whole prompt" if self.max_new_tokens else ""
            yield f"{split}: {self.cut} of {total} rows are cut to {self._limit_name} tokens{scored}"
        if unmeasured := len(self.used) - len(self.learned):
            yield (
                f"{split}: {unmeasured} of {total} rows are answered, but are not part of the loss: no token of an "
                f"answer is left within {self._limit_name} tokens"
            )

    @property
    def _by_window(self) -> bool:
        return self.window is not None and self.window < self.max_length

    @property
    def _limit_name(self) -> str:
        return f"the model's context of {self.window}" if self._by_window else f"data.max_length={self.max_length}"

    @property
    def _room(self) -> str:
        return f"evaluation.max_new_tokens={self.max_new_tokens} exceed the model's context of {self.window} tokens"
