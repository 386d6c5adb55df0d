"""Greedy batched generation: sorted by length, padded on the left, and finished rows leave the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteriaList

from lorahydra.errors import ConfigError
from lorahydra.modeling.kv_cache import growing_cache, keep_rows
from lorahydra.modeling.memory import OutOfMemoryError, with_a_batch_that_fits
from lorahydra.modeling.vocabulary import check_token_ids
from lorahydra.names import GENERATION_FILE
from lorahydra.utils.files import writing
from lorahydra.utils.progress import Advance, Progress

__all__ = [
    "Ends",
    "check_room",
    "context_window",
    "generate",
    "greedy_settings",
    "stop_tokens",
    "write_greedy_settings",
]

Ends = Callable[[Sequence[int]], int | None]
"""Called with an answer after each of its tokens; returns how many to keep if the answer has ended, else None."""

COMPACT_SHARE = 0.125
"""Finished rows leave the batch once they are this share of it, because each removal copies the remaining cache."""


def stop_tokens(model: PreTrainedModel, ends: Iterable[int]) -> frozenset[int]:
    """Tokens that end an answer.

    Args:
        model: The model, whose generation settings name some of the tokens.
        ends: The tokens of the chat format, `ChatFormat.end_tokens`.
    """
    configured = model.generation_config.eos_token_id if model.generation_config is not None else None
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(token for token in (*ids, *ends) if token is not None)


def greedy_settings(model: PreTrainedModel, tokenizer: Any, ends: Iterable[int]) -> GenerationConfig:
    """Settings of transformers' `generate` that make a model answer as in a trial.

    Args:
        model: The model.
        tokenizer: Its tokenizer, which has a padding token.
        ends: As for `stop_tokens`.
    """
    before, stop = model.generation_config, sorted(stop_tokens(model, ends))
    return GenerationConfig(
        do_sample=False,
        bos_token_id=None if before is None else before.bos_token_id,
        eos_token_id=stop[0] if len(stop) == 1 else stop or None,
        pad_token_id=tokenizer.pad_token_id,
    )


def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    stop: frozenset[int],
    max_new_tokens: int,
    batch_size: int,
    ends: Ends | None = None,
    progress: Progress | None = None,
    description: str = "Generating",
) -> list[list[int]]:
    """Answer each prompt with the most likely token at every step.

    Args:
        model: A causal LM; its mode and parameters are left as they are.
        prompts: Token ids of each prompt.
        stop: Tokens that end an answer.
        max_new_tokens: Longest answer in tokens.
        batch_size: Prompts decoded together; halved for what remains when memory runs out.
        ends: Ends answers by their text.
        progress: Where to show the progress.
        description: Label of the progress.

    Returns:
        Token ids of each answer, in the order of `prompts`, without the stop token or the text that ended it.

    Raises:
        ConfigError: A prompt leaves no room for an answer in the model's context, or one prompt alone does not fit
            into memory.
    """
    check_room(model, prompts, max_new_tokens)
    order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
    answers: list[list[int]] = []
    with torch.inference_mode(), (progress or Progress()).task(description, len(prompts)) as advance:
        decoder = _Decoder(model, stop, ends, max_new_tokens, advance)

        def answer_the_rest(size: int) -> None:
            while rest := order[len(answers) :]:
                answers.extend(decoder.decode([prompts[index] for index in rest[:size]]))

        try:
            with_a_batch_that_fits(answer_the_rest, min(batch_size, len(prompts)))
        except OutOfMemoryError:
            raise ConfigError("out of memory while generating one answer: use a smaller model") from None
    return [answers[place] for place in sorted(range(len(order)), key=order.__getitem__)]


def context_window(model: PreTrainedModel) -> int | None:
    """The largest number of tokens that the model takes; None if its configuration does not say."""
    window: int | None = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return window


def check_room(model: PreTrainedModel, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    """Check that each prompt leaves room for an answer in the model's context, and that the model has its tokens.

    Raises:
        ConfigError: A prompt leaves no room.
        ModelError: The model has no embedding for a token.
    """
    check_token_ids(model, max((max(prompt, default=0) for prompt in prompts), default=0), "a prompt")
    window = context_window(model)
    longest = max((len(prompt) for prompt in prompts), default=0)
    if window is not None and longest + max_new_tokens > window:
        raise ConfigError(
            f"a prompt of {longest} tokens and evaluation.max_new_tokens={max_new_tokens} exceed the model's context "
            f"of {window} tokens: lower one of them"
        )


def write_greedy_settings(folder: Path, model: PreTrainedModel, tokenizer: Any, ends: Iterable[int]) -> None:
    """Write `greedy_settings` into an adapter's folder, for users who run it without lorahydra.

    Raises:
        OutputError: The folder cannot be written.
    """
    with writing(folder):
        greedy_settings(model, tokenizer, ends).save_pretrained(folder, config_file_name=GENERATION_FILE)


@dataclass
class _Rows:
    """The rows of a batch whose answers have not ended."""

    numbers: list[int]
    """Position of each row in the answers; -1 for one that is finished."""
    mask: Tensor
    """1 for real tokens, 0 for padding; shape `(rows, capacity)`, ones beyond the prompt."""
    positions: Tensor
    """Position of the next token, shape `(rows, 1)`."""

    def drop_finished(self, cache: Any, token_ids: Tensor, live: list[int]) -> Tensor:
        """Keep the rows `live` of the batch; returns their tokens."""
        keep = torch.tensor(live, device=token_ids.device)
        keep_rows(cache, keep)
        self.numbers = [self.numbers[row] for row in live]
        self.mask = self.mask[keep]
        self.positions = self.positions[keep]
        return token_ids[keep]


@dataclass(frozen=True)
class _Decoder:
    """Answers batches of prompts; the fields are those of `generate`."""

    model: PreTrainedModel
    stop: frozenset[int]
    ends: Ends | None
    max_new_tokens: int
    advance: Advance

    def decode(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """The answers to one batch."""
        width = max(len(prompt) for prompt in prompts)
        cache = growing_cache(self.model, width + self.max_new_tokens)
        if cache is None:
            return self._decode_by_transformers(prompts, width)
        input_ids, mask = _pad_left(prompts, width, width + self.max_new_tokens, self.model.device)
        positions = (mask[:, :width].cumsum(1) - 1).clamp(min=0)
        rows = _Rows(list(range(len(prompts))), mask, positions[:, -1:] + 1)
        answers: list[list[int]] = [[] for _ in prompts]
        settings: dict[str, Any] = {"past_key_values": cache, "use_cache": True}
        visible = _visible(mask, width)
        logits = self.model(
            input_ids=input_ids, attention_mask=visible, position_ids=positions, logits_to_keep=1, **settings
        ).logits
        for step in range(self.max_new_tokens):
            token_ids = logits[:, -1].argmax(-1)
            logits = None
            live = self._take(token_ids.tolist(), rows, answers)
            if not live or step == self.max_new_tokens - 1:
                self.advance(len(live), "")
                break
            if len(live) <= len(token_ids) * (1 - COMPACT_SHARE):
                token_ids = rows.drop_finished(cache, token_ids, live)
            visible = _visible(rows.mask, width + step + 1)
            logits = self.model(
                input_ids=token_ids.unsqueeze(1), attention_mask=visible, position_ids=rows.positions, **settings
            ).logits
            rows.positions = rows.positions + 1
        return answers

    def _take(self, tokens: list[int], rows: _Rows, answers: list[list[int]]) -> list[int]:
        """Add a token to the answer of each row; returns the rows that continue."""
        live = []
        for row, token in enumerate(tokens):
            number = rows.numbers[row]
            if number < 0:
                continue
            if self._goes_on(answers[number], token):
                live.append(row)
            else:
                rows.numbers[row] = -1
                self.advance(1, "")
        return live

    def _goes_on(self, answer: list[int], token: int) -> bool:
        """Add the token to the answer; False if that ends the answer."""
        if token in self.stop:
            return False
        answer.append(token)
        kept = self.ends(answer) if self.ends is not None else None
        if kept is not None:
            del answer[kept:]
        return kept is None

    def _decode_by_transformers(self, prompts: Sequence[Sequence[int]], width: int) -> list[list[int]]:
        """The same with `model.generate`, for architectures with another kind of state (Mamba, hybrids, …)."""
        input_ids, mask = _pad_left(prompts, width, width, self.model.device)
        settings = GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            eos_token_id=sorted(self.stop) or None,
            pad_token_id=min(self.stop, default=0),
        )
        ends = self.ends

        def ended(ids: Tensor, _: Tensor, **__: Any) -> Tensor:
            tokens = ids[:, width:].tolist()
            over = [row[-1] not in self.stop and ends is not None and ends(row) is not None for row in tokens]
            return torch.tensor(over, device=ids.device)

        output = self.model.generate(
            input_ids=input_ids,
            attention_mask=mask,
            generation_config=settings,
            stopping_criteria=StoppingCriteriaList() if ends is None else StoppingCriteriaList([ended]),
        )
        self.advance(len(prompts), "")
        answers: list[list[int]] = [[] for _ in prompts]
        for answer, tokens in zip(answers, output[:, width:].tolist(), strict=True):
            all(self._goes_on(answer, token) for token in tokens)
        return answers


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
