"""Parts of bert-score that are private, with the reason why the public API is not enough.

No other module reads them. `tests/metrics/test_compat.py` tests what is relied on; `make upgrade-check` runs it with
the newest versions that pyproject.toml allows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bert_score import BERTScorer
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["encoder_of", "tokenizer_of"]


def encoder_of(scorer: BERTScorer) -> PreTrainedModel:
    """The encoder of a scorer, which tells only its name. It reads long texts in windows; its weights are checked."""
    return scorer._model


def tokenizer_of(scorer: BERTScorer) -> PreTrainedTokenizerBase:
    """The tokenizer of a scorer, which has no setting for how it reads special tokens and how long a text may be."""
    return scorer._tokenizer
