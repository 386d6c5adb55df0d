"""Prompts with solved examples: what the untuned model answers without any training.

The examples are the training rows whose requests are most similar to the one that is asked (cosine of the mean token
embeddings of BERTScore's encoder), the most similar one last. They are earlier turns of the conversation.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np

from lorahydra.config.schema import ExperimentConfig
from lorahydra.data.examples import Example
from lorahydra.evaluation import EvaluationSet
from lorahydra.modeling.generation import context_window
from lorahydra.trial.prepare import Prepared

__all__ = ["with_shots"]

logger = logging.getLogger(__name__)

MOST_ROWS = 1000
"""Training rows among which similar ones are sought; of more, the seed draws so many."""

_sets: dict[object, EvaluationSet] = {}


def with_shots(config: ExperimentConfig, prepared: Prepared, examples: EvaluationSet) -> EvaluationSet:
    """The examples with `evaluation.few_shot` solved ones in each prompt; fewer where the model has no room for them.

    Made once per process for the same rows and settings.
    """
    settings, splits = config.evaluation, prepared.splits
    key = (examples.digest, splits.train.digest, repr(dataclasses.astuple(settings)), prepared.chat.fingerprint)
    if key not in _sets:
        test = splits.test if examples is prepared.test_set else None
        asked = list(splits.validation if test is None else test)
        drawn = np.random.default_rng(config.seed).permutation(len(splits.train))[:MOST_ROWS]
        known = [splits.train[row] for row in np.sort(drawn).tolist()]
        texts = [[prepared.chat.prompt_text(one) for one in some] for some in (asked, known)]
        wanted, found = (prepared.scorer.embeddings(some) for some in texts)
        nearest = np.argsort(-(wanted @ found.T), axis=1, kind="stable")[:, : settings.few_shot]
        prompts = [
            _prompt(config, prepared, one, [known[row] for row in rows.tolist()])
            for one, rows in zip(asked, nearest, strict=True)
        ]
        digest = f"{examples.digest} {settings.few_shot}-shot {splits.train.digest}"
        _sets[key] = dataclasses.replace(examples, prompts=prompts, digest=digest)
    return _sets[key]


def _prompt(config: ExperimentConfig, prepared: Prepared, asked: Example, similar: Sequence[Example]) -> list[int]:
    """The tokens of a prompt behind as many of the similar examples, the most similar first, as there is room for."""
    room = context_window(prepared.base.model)
    for count in range(len(similar), 0, -1):
        shots = [turn for one in reversed(similar[:count]) for turn in one.messages if turn.role != "system"]
        system = [turn for turn in asked.messages if turn.role == "system"]
        rest = [turn for turn in asked.messages if turn.role != "system"]
        prompt = prepared.chat.prompt_ids(dataclasses.replace(asked, messages=(*system, *shots, *rest)))
        if room is None or len(prompt) + config.evaluation.max_new_tokens <= room:
            return prompt
    return prepared.chat.prompt_ids(asked)
