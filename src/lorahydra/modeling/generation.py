"""Greedy generation: prompts in batches of similar length, smaller ones when memory runs out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from lorahydra.errors import ConfigError
from lorahydra.modeling.decoding import Decoder, Ends
from lorahydra.modeling.memory import OutOfMemoryError, with_a_batch_that_fits
from lorahydra.modeling.vocabulary import check_token_ids
from lorahydra.names import GENERATION_FILE
from lorahydra.utils.files import writing
from lorahydra.utils.progress import Progress

__all__ = [
    "Ends",
    "check_room",
    "context_window",
    "generate",
    "greedy_settings",
    "stop_tokens",
    "write_greedy_settings",
]


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
    slots: int = 1,
    progress: Progress | None = None,
    description: str = "Generating",
) -> list[list[list[int]]]:
    """Answer each prompt with the most likely token at every step; each adapter of a pack answers as it does alone.

    Args:
        model: A causal LM; its mode and parameters are left as they are.
        prompts: Token ids of each prompt.
        stop: Tokens that end an answer.
        max_new_tokens: Longest answer in tokens.
        batch_size: Answers, of all adapters, that are decoded together; halved for what remains when memory runs out.
        ends: Ends answers by their text.
        slots: Adapters that are attached side by side; 1 for a model without any.
        progress: Where to show the progress.
        description: Label of the progress.

    Returns:
        For each slot, token ids of each answer, in the order of `prompts`, without the stop token or the text that
        ended it.

    Raises:
        ConfigError: A prompt leaves no room for an answer in the model's context, or one prompt alone does not fit
            into memory.
    """
    check_room(model, prompts, max_new_tokens)
    order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
    answers: list[list[list[int]]] = [[] for _ in range(slots)]
    with torch.inference_mode(), (progress or Progress()).task(description, slots * len(prompts)) as advance:
        decoder = Decoder(model, stop, ends, max_new_tokens, advance, slots)

        def answer_the_rest(size: int) -> None:
            while rest := order[len(answers[0]) :]:
                decoded = decoder.decode([prompts[index] for index in rest[:size]])
                for done, new in zip(answers, decoded, strict=True):
                    done.extend(new)

        try:
            with_a_batch_that_fits(answer_the_rest, max(1, min(batch_size // slots, len(prompts))))
        except OutOfMemoryError:
            raise ConfigError("out of memory while generating one answer: use a smaller model") from None
    places = sorted(range(len(order)), key=order.__getitem__)
    return [[done[place] for place in places] for done in answers]


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
