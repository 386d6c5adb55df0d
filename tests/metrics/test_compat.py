"""What lorahydra relies on in bert-score beyond its public API."""

from __future__ import annotations

from pathlib import Path

from bert_score import BERTScorer
from tests.support.models import make_tiny_encoder
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorahydra.metrics.compat import encoder_of, tokenizer_of


def test_a_scorer_has_its_encoder_and_its_tokenizer(tmp_path: Path) -> None:
    scorer = BERTScorer(model_type=str(make_tiny_encoder(tmp_path)), num_layers=1, device="cpu")
    assert isinstance(encoder_of(scorer), PreTrainedModel)
    tokenizer = tokenizer_of(scorer)
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    # The scorer tokenizes with this very object.
    tokenizer.split_special_tokens = True
    assert tokenizer_of(scorer).split_special_tokens
