"""Decodes a batch of prompts: padded on the left, one token of each row at a time, and finished rows leave the batch.

On a GPU the steps after the first two are recorded and repeated as a whole: a step launches more than a thousand
kernels, which takes the processor longer than running them takes the GPU. Tensors of a recorded step stay where they
are, so its attention reads the whole capacity of the cache, of which a mask hides what is not filled.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteriaList
from transformers.cache_utils import Cache

from lorahydra.modeling.compat import attention_of, computes_in_static_shapes
from lorahydra.modeling.cuda_graphs import NotRecordableError, Recorder, recorder
from lorahydra.modeling.kv_cache import growing_cache, keep_rows, write_at
from lorahydra.modeling.memory import ran_out_of_memory
from lorahydra.utils.progress import Advance

__all__ = ["Decoder", "Ends"]

logger = logging.getLogger(__name__)

Ends = Callable[[Sequence[int]], int | None]
"""Called with an answer after each of its tokens; returns how many to keep if the answer has ended, else None."""

COMPACT_SHARE = 0.125
"""Finished rows leave the batch once they are this share of it, because each removal copies the remaining cache."""
RECORDED_COMPACT_SHARE = 0.5
"""The same where steps are recorded: a row costs next to nothing, and another number of rows a new recording."""
WORTH_RECORDING = 6
"""Steps that must be left for a recording to pay."""
CLOSE = 0.1
"""A static step's logits may differ from the usual ones by this share of their norm: several times what the rounding of
bfloat16 makes, and far less than a wrong mask does."""

NEVER = -1
_checked: WeakKeyDictionary[PreTrainedModel, int] = WeakKeyDictionary()
"""Up to which capacity of the cache a model computed the same in a static step, or `NEVER` if it did not or cannot be
recorded."""


class Decoder:
    """Answers batches of prompts.

    Args:
        model: The model; the next three are as for `generate`.
        stop: Tokens that end an answer.
        ends: Ends answers by their text.
        max_new_tokens: Longest answer in tokens.
        advance: Told of each answer that ends.
        slots: Adapters that are attached side by side; all answer the same prompts.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        stop: frozenset[int],
        ends: Ends | None,
        max_new_tokens: int,
        advance: Advance,
        slots: int,
    ) -> None:
        self._model = model
        self._stop = stop
        self._ends = ends
        self._max_new_tokens = max_new_tokens
        self._advance = advance
        self._slots = slots
        self._record = recorder(model.device)

    def decode(self, prompts: Sequence[Sequence[int]]) -> list[list[list[int]]]:
        """The answers of each adapter to one batch."""
        rows, width = list(prompts) * self._slots, max(len(prompt) for prompt in prompts)
        capacity = width + self._max_new_tokens
        capacity += -capacity % 8  # attention with a mask is quicker with aligned rows
        cache = growing_cache(self._model, capacity)
        if cache is None:
            answers = self._decode_by_transformers(rows, width)
        else:
            input_ids, mask = _pad_left(rows, width, capacity, self._model.device)
            answers = self._decode(input_ids, _Batch(self._model, cache, mask, width, self._slots, self._record))
        return [answers[start : start + len(prompts)] for start in range(0, len(rows), len(prompts))]

    def _decode(self, input_ids: Tensor, batch: _Batch) -> list[list[int]]:
        answers: list[list[int]] = [[] for _ in batch.numbers]
        tokens = batch.read(input_ids)
        for left in reversed(range(self._max_new_tokens)):
            live = self._take(tokens.tolist(), batch.numbers, answers)
            if not live or not left:
                self._advance(len(live), "")
                break
            tokens = batch.next(batch.drop_finished(tokens, live), left)
        return answers

    def _take(self, tokens: list[int], numbers: list[int], answers: list[list[int]]) -> list[int]:
        """Add a token to the answer of each row; returns the rows that continue."""
        live = []
        for row, token in enumerate(tokens):
            number = numbers[row]
            if number < 0:
                continue
            if self._goes_on(answers[number], token):
                live.append(row)
            else:
                numbers[row] = -1
                self._advance(1, "")
        return live

    def _goes_on(self, answer: list[int], token: int) -> bool:
        """Add the token to the answer; False if that ends the answer."""
        if token in self._stop:
            return False
        answer.append(token)
        kept = self._ends(answer) if self._ends is not None else None
        if kept is not None:
            del answer[kept:]
        return kept is None

    def _decode_by_transformers(self, prompts: Sequence[Sequence[int]], width: int) -> list[list[int]]:
        """The same with `model.generate`, for architectures with another kind of state (Mamba, hybrids, …)."""
        input_ids, mask = _pad_left(prompts, width, width, self._model.device)
        settings = GenerationConfig(
            max_new_tokens=self._max_new_tokens,
            do_sample=False,
            eos_token_id=sorted(self._stop) or None,
            pad_token_id=min(self._stop, default=0),
        )
        ends = self._ends

        def ended(ids: Tensor, _: Tensor, **__: Any) -> Tensor:
            tokens = ids[:, width:].tolist()
            over = [row[-1] not in self._stop and ends is not None and ends(row) is not None for row in tokens]
            return torch.tensor(over, device=ids.device)

        output = self._model.generate(
            input_ids=input_ids,
            attention_mask=mask,
            generation_config=settings,
            stopping_criteria=StoppingCriteriaList() if ends is None else StoppingCriteriaList([ended]),
        )
        self._advance(len(prompts), "")
        answers: list[list[int]] = [[] for _ in prompts]
        for answer, tokens in zip(answers, output[:, width:].tolist(), strict=True):
            all(self._goes_on(answer, token) for token in tokens)
        return answers


class _Batch:
    """The rows of a batch whose answers have not ended, and what they have read.

    Args:
        model: The model.
        cache: Its keys and values, with room for prompts and answers.
        mask: 1 for real tokens, 0 for padding, and ones beyond the prompt; shape `(rows, capacity)`.
        width: Tokens of the longest prompt.
        slots: Adapters; the rows of the first come first, and all have the same number.
        record: Records steps, if that is possible.
    """

    def __init__(
        self, model: PreTrainedModel, cache: Cache, mask: Tensor, width: int, slots: int, record: Recorder | None
    ) -> None:
        self.numbers = list(range(len(mask)))
        """Position of each row in the answers; -1 for one that is finished."""
        self._model = model
        self._cache = cache
        self._mask = mask
        self._length = width
        """Tokens that each row has read, padding included."""
        self._slots = slots
        self._record = record
        self._positions = torch.empty(0)
        """Of the next token, shape `(rows, 1)`."""
        self._static: _StaticStep | None = None

    def read(self, input_ids: Tensor) -> Tensor:
        """Read the prompts, shape `(rows, width)`; returns the most likely next token of each, shape `(rows,)`."""
        positions = (self._mask[:, : self._length].cumsum(1) - 1).clamp(min=0)
        self._positions = positions[:, -1:] + 1
        return self._logits(input_ids, positions)[:, -1].argmax(-1)

    def next(self, tokens: Tensor, left: int) -> Tensor:
        """Read one token of each row; returns the most likely next ones.

        Args:
            tokens: Shape `(rows,)`.
            left: Steps that are left at most, with this one.
        """
        if self._static is not None:
            return self._static.run(tokens, self._record)
        step = self._static_step(tokens) if self._record is not None and left >= WORTH_RECORDING else None
        if step is not None and self._mask.shape[1] <= _checked.get(self._model, 0):
            self._static = step
            return step.run(tokens, self._record)
        # Before the usual step, which writes the same place of the cache once more.
        other = None if step is None else step.logits_to_compare()
        self._length += 1
        logits = self._logits(tokens.unsqueeze(1), self._positions)
        self._positions = self._positions + 1
        if step is not None and bool(logits.isfinite().all()):
            _checked[self._model] = self._mask.shape[1] if _are_close(other, logits) else NEVER
        return logits[:, -1].argmax(-1)

    def _logits(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        logits: Tensor = self._model(
            input_ids=input_ids,
            attention_mask=_visible(self._mask, self._length),
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        return logits

    def _static_step(self, tokens: Tensor) -> _StaticStep | None:
        """A static step for the rows; None for a model that cannot have one."""
        if (
            _checked.get(self._model) == NEVER
            or not computes_in_static_shapes(self._model)
            or attention_of(self._model) not in {"sdpa", "eager"}
        ):
            return None
        place = torch.tensor([self._length], device=tokens.device)
        mask = _additive(self._mask, self._length, self._model.dtype)
        return _StaticStep(self._model, self._cache, tokens.unsqueeze(1).clone(), self._positions.clone(), mask, place)

    def drop_finished(self, tokens: Tensor, live: list[int]) -> Tensor:
        """Drop finished rows, if they are many; each adapter keeps the same number.

        Args:
            tokens: Of each row.
            live: The rows that are not finished.

        Returns:
            The tokens of the rows that are left.
        """
        size = len(self.numbers) // self._slots
        parts = [[row for row in live if row // size == slot] for slot in range(self._slots)]
        keep = max(map(len, parts))
        if keep > size * (1 - (COMPACT_SHARE if self._static is None else RECORDED_COMPACT_SHARE)):
            return tokens
        unfinished = set(live)
        for slot, part in enumerate(parts):
            finished = (row for row in range(slot * size, (slot + 1) * size) if row not in unfinished)
            part.extend(itertools.islice(finished, keep - len(part)))
        rows = list(itertools.chain(*parts))
        self.numbers = [self.numbers[row] for row in rows]
        kept = torch.tensor(rows, device=tokens.device)
        keep_rows(self._cache, kept)
        self._mask = self._mask[kept]
        self._positions = self._positions[kept]
        if self._static is not None:
            self._static = self._static.of_rows(kept)
        return tokens[kept]


class _StaticStep:
    """A step of decoding whose tensors stay where they are.

    Args:
        model: The model.
        cache: Its keys and values, which are written at `place`.
        tokens: Of each row, shape `(rows, 1)`.
        positions: Of these tokens, shape `(rows, 1)`.
        mask: What is added to the scores of attention, shape `(rows, 1, 1, capacity)`.
        place: Where the next token goes in the cache, shape `(1,)`.
    """

    def __init__(
        self, model: PreTrainedModel, cache: Cache, tokens: Tensor, positions: Tensor, mask: Tensor, place: Tensor
    ) -> None:
        self._model = model
        self._cache = cache
        self._tokens = tokens
        self._positions = positions
        self._mask = mask
        self._place = place
        self._repeat: Callable[[], None] | None = None
        self._runs = 0

    def run(self, tokens: Tensor, record: Recorder | None) -> Tensor:
        """Read one token of each row, from the second time on by a recording; returns the most likely next ones."""
        self._tokens.copy_(tokens.view(-1, 1))
        self._runs += 1
        if self._repeat is None:
            write_at(self._cache, self._place)
            if self._runs == 2 and record is not None and _checked.get(self._model) != NEVER:
                self._record(record)
        (self._repeat or self._work)()
        return self._tokens[:, 0]

    def _record(self, record: Recorder) -> None:
        try:
            self._repeat = record(self._work)
        except NotRecordableError as error:
            logger.debug("%s cannot be recorded: %s", type(self._model).__name__, error)
            if not error.for_now:
                _checked[self._model] = NEVER

    def logits_to_compare(self) -> Tensor | None:
        """The logits of this step, after which the cache goes on as usual; None if the model cannot compute it."""
        if not write_at(self._cache, self._place):
            return None
        try:
            return self._logits()
        except (RuntimeError, ValueError, TypeError) as error:
            if ran_out_of_memory(error):
                raise
            return None
        finally:
            write_at(self._cache, None)

    def of_rows(self, rows: Tensor) -> _StaticStep:
        """The step for some of the rows, after those of the cache."""
        parts = (self._tokens[rows], self._positions[rows], self._mask[rows])
        return _StaticStep(self._model, self._cache, *parts, self._place)

    def _work(self) -> None:
        self._tokens.copy_(self._logits()[:, -1].argmax(-1, keepdim=True))
        self._positions.add_(1)
        self._place.add_(1)

    def _logits(self) -> Tensor:
        self._mask.index_fill_(3, self._place, 0.0)
        logits: Tensor = self._model(
            input_ids=self._tokens,
            attention_mask=self._mask,
            position_ids=self._positions,
            past_key_values=self._cache,
            use_cache=True,
        ).logits
        return logits


def _are_close(static: Tensor | None, usual: Tensor) -> bool:
    """Whether the logits of each row are the same but for rounding."""
    if static is None:
        return False
    differences = (static - usual).float().norm(dim=-1)
    return bool((differences <= CLOSE * usual.float().norm(dim=-1)).all())


def _additive(mask: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """What hides padding and all from `length` on when it is added to the scores of attention."""
    hidden = (mask == 0) | (torch.arange(mask.shape[1], device=mask.device) >= length)
    zeros = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return zeros.masked_fill(hidden, torch.finfo(dtype).min)[:, None, None]


def _visible(mask: Tensor, length: int) -> Tensor | None:
    """The mask of the first `length` tokens, or None when nothing is hidden: attention is quicker without one."""
    part = mask[:, :length]
    return None if bool(part.all()) else part


def _pad_left(
    prompts: Sequence[Sequence[int]], width: int, capacity: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Prompts as ids of shape `(rows, width)` and their mask of shape `(rows, capacity)`."""
    input_ids = torch.zeros((len(prompts), width), dtype=torch.long)
    mask = torch.ones((len(prompts), capacity), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        input_ids[row, width - len(prompt) :] = torch.as_tensor(prompt, dtype=torch.long)
        mask[row, : width - len(prompt)] = 0
    return input_ids.to(device), mask.to(device)
