"""Measures what an adapter makes its base model forget (`evaluation.forgetting`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from lorahydra.config.schema import ExperimentConfig
from lorahydra.data.examples import Example, Message
from lorahydra.evaluation.forgetting import Forgetting, compare_general, general_checks, general_texts
from lorahydra.modeling.compat import attention_of
from lorahydra.modeling.generation import generate, stop_tokens
from lorahydra.modeling.saved_pack import load_pack
from lorahydra.trial.prepare import Prepared
from lorahydra.utils.progress import Progress

__all__ = ["measure_forgetting"]

NEW_TOKENS = 32
BATCH = 8
GeneralScores = tuple[list[float], list[bool]]
"""The loss of each text in nats per token, and which instructions are followed."""

_untuned: dict[object, GeneralScores] = {}


def measure_forgetting(
    config: ExperimentConfig, prepared: Prepared, adapter: Path, progress: Progress
) -> Forgetting | None:
    """Compare an adapter with its base model on general texts and instructions; the base model once per process.

    Returns:
        None if `evaluation.forgetting` is off.
    """
    if config.evaluation.forgetting == "none":
        return None
    base = prepared.base
    key = (base.source, base.digest, str(base.device), base.dtype, attention_of(base.model), prepared.chat.fingerprint)
    if key not in _untuned:
        _untuned[key] = _scores(base.model, prepared, progress, "General checks (untuned)")
    with load_pack(base, [adapter]) as model:
        tuned = _scores(model, prepared, progress, "General checks")
    before = _untuned[key]
    return compare_general((before[0], tuned[0]), (before[1], tuned[1]))


def _scores(model: PreTrainedModel, prepared: Prepared, progress: Progress, description: str) -> GeneralScores:
    chat, checks = prepared.chat, general_checks()
    prompts = [
        chat.prompt_ids(Example((Message("user", check.prompt), Message("assistant", "")), line=0)) for check in checks
    ]
    [answers] = generate(
        model,
        prompts,
        stop=stop_tokens(prepared.base.model, chat.end_tokens),
        ends=chat.text_end,
        max_new_tokens=NEW_TOKENS,
        batch_size=len(prompts),
        progress=progress,
        description=description,
    )
    passed = [check.passed(chat.answer_text(answer)) for check, answer in zip(checks, answers, strict=True)]
    tokens = [prepared.base.tokenizer(text)["input_ids"] for text in general_texts()]
    return _losses(model, tokens, str(prepared.base.device)), passed


@torch.inference_mode()
def _losses(model: PreTrainedModel, texts: Sequence[list[int]], device: str) -> list[float]:
    """The mean loss of predicting each token of each text, without its first."""
    losses: list[float] = []
    for start in range(0, len(texts), BATCH):
        batch = texts[start : start + BATCH]
        longest = max(map(len, batch))
        ids = torch.tensor([text + [0] * (longest - len(text)) for text in batch], device=device)
        mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in batch], device=device)
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
        each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        counts = mask[:, 1:]
        losses += ((each * counts).sum(dim=1) / counts.sum(dim=1).clamp(min=1)).tolist()
    return losses
