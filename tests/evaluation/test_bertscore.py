"""BERTScore is that of the `bert-score` package, loaded once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lorahydra.config.schema import EvaluationConfig
from lorahydra.errors import ConfigError, ModelError, ServiceError
from lorahydra.evaluation.bertscore import load_scorer
from lorahydra.modeling.packaged import fetch

ANSWERS = ["The cat sat on the mat.", "Он пришёл домой.", "", "word " * 900]
REFERENCES = ["A cat was sitting on the mat.", "Он вернулся домой.", "Something.", "other words " * 700]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def encoder() -> Path:
    return fetch("all-minilm-l6-v2")


def minilm(**changes: object) -> EvaluationConfig:
    return EvaluationConfig(bertscore_model="all-minilm-l6-v2", **changes)  # type: ignore[arg-type]


def test_scores_equal_the_packages_own(encoder: Path) -> None:
    import bert_score

    actual = load_scorer(minilm(), CPU).score(ANSWERS[:2], REFERENCES[:2])
    expected = bert_score.score(ANSWERS[:2], REFERENCES[:2], model_type=str(encoder), num_layers=6, device="cpu")
    for ours, theirs in zip((actual.precision, actual.recall, actual.f1), expected, strict=True):
        assert ours == pytest.approx(theirs.tolist(), abs=1e-6)


def test_an_empty_answer_scores_nothing_and_a_long_one_is_cut(encoder: Path) -> None:
    scores = load_scorer(minilm(), CPU).score(ANSWERS, REFERENCES)
    assert (scores.precision[2], scores.recall[2], scores.f1[2]) == (0, 0, 0)
    assert 0 < scores.f1[3] < 1


def test_only_empty_answers_score_nothing(encoder: Path) -> None:
    assert load_scorer(minilm(), CPU).score(["", " "], ["a", "b"]).f1 == [0, 0]


def test_the_same_text_scores_one(encoder: Path) -> None:
    assert load_scorer(minilm(), CPU).score(ANSWERS[:2], ANSWERS[:2]).f1 == pytest.approx([1, 1], abs=1e-5)


def test_the_encoder_is_loaded_once_per_process(encoder: Path) -> None:
    assert load_scorer(minilm(), CPU)._scorer is load_scorer(minilm(bertscore_batch_size=8), CPU)._scorer


def test_a_local_encoder_needs_its_layer(encoder: Path) -> None:
    with pytest.raises(ConfigError, match="evaluation.bertscore_num_layers is not set"):
        load_scorer(EvaluationConfig(bertscore_model=str(encoder)), CPU)
    config = EvaluationConfig(bertscore_model=str(encoder), bertscore_num_layers=6)
    assert load_scorer(config, CPU).score(["a cat"], ["a cat"]).f1 == pytest.approx([1], abs=1e-5)


def test_an_impossible_layer_is_one_line(encoder: Path) -> None:
    with pytest.raises(ConfigError, match="evaluation.bertscore_num_layers=60 is not possible"):
        load_scorer(minilm(bertscore_num_layers=60), CPU)


def test_a_missing_baseline_is_one_line(encoder: Path) -> None:
    with pytest.raises(ConfigError, match="ships no baseline of all-minilm-l6-v2 for lang=ru"):
        load_scorer(minilm(rescale_with_baseline=True, lang="ru"), CPU)


def test_an_encoder_that_is_not_fetched_says_how(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LORAHYDRA_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="run `lorahydra models fetch all-minilm-l6-v2`"):
        load_scorer(minilm(bertscore_batch_size=3, bertscore_num_layers=5), CPU)


def test_an_encoder_on_a_hub_that_cannot_be_asked_is_one_line() -> None:
    with pytest.raises(ServiceError, match="roberta-base is not in .* take the packaged encoder: evaluation=minilm"):
        load_scorer(EvaluationConfig(bertscore_model="roberta-base"), CPU)


def test_a_folder_without_an_encoder_is_one_line(tmp_path: Path) -> None:
    config = EvaluationConfig(bertscore_model=str(tmp_path), bertscore_num_layers=2)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_scorer(config, CPU)
