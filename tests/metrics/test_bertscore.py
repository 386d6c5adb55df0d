"""BERTScore is that of the `bert-score` package, loaded once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from tests.support.gpu import almost_full_gpu, needs_gpu
from tests.support.models import make_tiny_encoder

from lorahydra.config.schema import EvaluationConfig
from lorahydra.errors import ConfigError, ModelError, ServiceError
from lorahydra.metrics.bertscore import load_scorer
from lorahydra.metrics.windows import windows
from lorahydra.modeling.packaged import fetch

ANSWERS = ["The cat sat on the mat.", "Он пришёл домой.", "A [SEP] in the middle.", "An answer."]
REFERENCES = ["A cat was sitting on the mat.", "Он вернулся домой.", "Something.", "The reference."]
STEPS = " ".join(f"step {i} is to check valve {i} and write down the pressure." for i in range(60))
"""Some 780 tokens of an encoder that reads 512."""
CPU = torch.device("cpu")
BASELINE = "LAYER,P,R,F\n" + "".join(f"{layer},0.2,0.3,0.25\n" for layer in range(7))


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
        assert ours == theirs.tolist()


def test_a_long_answer_is_read_to_its_end(encoder: Path, caplog: pytest.LogCaptureFixture) -> None:
    scorer = load_scorer(minilm(), CPU)
    wrong = STEPS[: len(STEPS) * 2 // 3] + " I hate you. Nonsense follows, buy pills now." * 60
    with caplog.at_level("INFO"):
        good, bad, short = scorer.score([STEPS, wrong, "a cat"], [STEPS, STEPS, "a cat"]).f1
    assert good == pytest.approx(1, abs=1e-5)
    assert bad < 0.8, "the first 510 tokens are right"
    assert short == pytest.approx(1, abs=1e-5)
    assert "2 of 3 examples are longer than the 512 tokens that all-minilm-l6-v2 reads at once" in caplog.text


@pytest.mark.parametrize("room", [1, 2, 3, 10])
def test_windows_keep_each_token_once_and_from_its_middle(room: int) -> None:
    for length in range(1, 60):
        parts = windows(length, room)
        assert [token for one in parts for token in range(one.kept_from, one.kept_to)] == list(range(length))
        assert all(one.start <= one.kept_from <= one.kept_to <= one.end <= length for one in parts)
        assert all(one.end - one.start == min(room, length) for one in parts)
    first, second, *_ = windows(100, 40)
    assert (first.end, second.start) == (40, 30)
    assert first.kept_to == second.kept_from == 35


def test_texts_of_one_window_score_alike_in_windows(encoder: Path) -> None:
    scorer = load_scorer(minilm(), CPU)
    parts = scorer._encoder
    pairs = [(parts.tokens(a), parts.tokens(b)) for a, b in zip(ANSWERS, REFERENCES, strict=True)]
    f1 = parts.score(pairs, batch_size=3)[:, 2].tolist()
    assert f1 == pytest.approx(scorer.score(ANSWERS, REFERENCES).f1, abs=1e-5)


def test_what_has_no_tokens_scores_nothing(encoder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    scores = load_scorer(minilm(), CPU).score(["", " ", "\u200b", "a cat", "a"], ["a", STEPS, "b", "a cat", ""])
    for values in (scores.precision, scores.recall, scores.f1):
        assert values == [0, 0, 0, pytest.approx(1, abs=1e-5), 0]
    assert "Warning" not in capfd.readouterr().err
    assert load_scorer(minilm(), CPU).score([""], ["a"]).f1 == [0]


def test_what_looks_like_a_special_token_is_text(encoder: Path) -> None:
    scores = load_scorer(minilm(), CPU).score(["[SEP]", "[PAD] [CLS]", "\ud800"], ["[SEP]", "a cat", "\ud800"])
    assert scores.f1[::2] == pytest.approx([1, 1], abs=1e-5)
    assert 0 < scores.f1[1] < 1


@pytest.mark.parametrize("answer", ["a cat", STEPS])
def test_an_encoder_that_overflows_is_an_error_and_not_a_zero(encoder: Path, answer: str) -> None:
    scorer = load_scorer(minilm(), CPU)

    def overflow(_: object, __: object, output: tuple[torch.Tensor, ...]) -> None:
        output[0].fill_(float("nan"))

    handle = scorer._encoder.model.register_forward_hook(overflow)
    try:
        with pytest.raises(
            ModelError, match="all-minilm-l6-v2 gives numbers that are not finite for 1 of 2 predictions"
        ):
            scorer.score(["", answer], ["a cat", "a cat"])
    finally:
        handle.remove()


def test_the_same_text_scores_one(encoder: Path) -> None:
    assert load_scorer(minilm(), CPU).score(ANSWERS[:2], ANSWERS[:2]).f1 == pytest.approx([1, 1], abs=1e-5)


def test_the_encoder_is_loaded_once_per_process(encoder: Path) -> None:
    assert load_scorer(minilm(), CPU)._encoder is load_scorer(minilm(bertscore_batch_size=8), CPU)._encoder


def test_a_local_encoder_needs_its_layer(encoder: Path) -> None:
    with pytest.raises(ConfigError, match="evaluation.bertscore_num_layers is not set"):
        load_scorer(EvaluationConfig(bertscore_model=str(encoder)), CPU)
    config = EvaluationConfig(bertscore_model=str(encoder), bertscore_num_layers=6)
    assert load_scorer(config, CPU).score(["a cat"], ["a cat"]).f1 == pytest.approx([1], abs=1e-5)


def test_an_impossible_layer_is_one_line(encoder: Path) -> None:
    with pytest.raises(ConfigError, match="evaluation.bertscore_num_layers=60 is not allowed"):
        load_scorer(minilm(bertscore_num_layers=60), CPU)


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable:UserWarning")  # of bert-score
def test_rescaling_is_that_of_the_package_and_nothing_is_better_than_no_answer(encoder: Path, tmp_path: Path) -> None:
    from bert_score import BERTScorer

    file = tmp_path / "baseline.tsv"
    file.write_text(BASELINE)
    config = EvaluationConfig(
        bertscore_model=str(encoder),
        bertscore_num_layers=6,
        rescale_with_baseline=True,
        bertscore_baseline_file=str(file),
    )
    answers, references = [*ANSWERS[:2], "xyz 123", ""], [*REFERENCES[:2], STEPS[:500], "A cat."]
    actual = load_scorer(config, CPU).score(answers, references)
    package = BERTScorer(
        model_type=str(encoder), num_layers=6, lang="en", rescale_with_baseline=True, baseline_path=str(file)
    )
    assert actual.f1[:3] == package.score(answers[:3], references[:3])[2].tolist()
    assert actual.f1[3] == actual.lowest == pytest.approx(-0.25 / 0.75)
    assert actual.f1[3] < min(actual.f1[:3])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file or directory"),
        ("", "has no numbers for layer 6: it needs the header LAYER,P,R,F"),
        ("LAYER,P,R,F\n0,0.1,0.1,0.1\n", "has no numbers for layer 6"),
        ("LAYER,P,R\n6,0.1,0.1\n", "has no numbers for layer 6"),
        ("LAYER,P,R,F\n6,0.1,high,0.1\n", "has no numbers for layer 6"),
        ("LAYER,P,R,F\n6,0.1,1,0.1\n", "the numbers of layer 6 are not between -1 and 1"),
        ("LAYER,P,R,F\n6,0.1,nan,0.1\n", "the numbers of layer 6 are not between -1 and 1"),
    ],
)
def test_a_baseline_file_that_cannot_be_used_is_one_line(
    encoder: Path, tmp_path: Path, content: str | None, message: str
) -> None:
    file = tmp_path / "baseline.tsv"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=f"evaluation.bertscore_baseline_file=.*{message}"):
        load_scorer(minilm(rescale_with_baseline=True, bertscore_baseline_file=str(file)), CPU)


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


def test_noise_never_scores_above_a_right_answer() -> None:
    noise = "fluor conducting conducting conducting conducting conducting"
    scores = load_scorer(minilm(), CPU).score([noise, "38"], ["38", "38"])
    assert scores.precision[0] * scores.recall[0] < 0, "one side is negative, and their harmonic mean 12.5"
    assert scores.f1 == [0.0, pytest.approx(1.0)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", b"x" * 100, "cannot be loaded: .*header"),
        ("config.json", b"{", "cannot be loaded: .*not a valid JSON"),
        ("tokenizer.json", b"{}", "cannot be loaded: KeyError"),
        ("model.safetensors", save({"x.weight": torch.zeros(2)}), "not those of the model that its config.json"),
    ],
)
def test_a_broken_encoder_is_refused_in_one_line(
    encoder: Path, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    for path in encoder.iterdir():
        if path.is_file():
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / name).unlink()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        load_scorer(EvaluationConfig(bertscore_model=str(tmp_path), bertscore_num_layers=6), CPU)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_memory_that_runs_out_halves_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = EvaluationConfig(bertscore_model=str(make_tiny_encoder(tmp_path / "encoder")), bertscore_num_layers=2)
    expected = load_scorer(config, CPU).score(ANSWERS, REFERENCES)
    scorer = load_scorer(config, CPU)
    scored = scorer._encoder.score_texts

    def score(predictions: list[str], references: list[str], batch_size: int) -> object:
        # Really asks the allocator for more than any machine has.
        return scored(predictions, references, batch_size) if batch_size <= 16 else torch.empty(2**55)

    monkeypatch.setattr(scorer._encoder, "score_texts", score)
    assert scorer.score(ANSWERS, REFERENCES) == expected
    assert "Out of memory with a batch of 32: going on with 16" in caplog.text
    monkeypatch.setattr(scorer._encoder, "score_texts", lambda *_: torch.empty(2**55))
    with pytest.raises(ModelError, match=r"out of memory while .* choose a smaller encoder"):
        scorer.score(ANSWERS, REFERENCES)


@needs_gpu
def test_a_gpu_scores_as_the_cpu_also_when_it_is_full(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = EvaluationConfig(
        bertscore_model=str(make_tiny_encoder(tmp_path / "encoder")), bertscore_num_layers=2, bertscore_batch_size=512
    )
    answers = [f"{number} {STEPS[:400]}" for number in range(256)] + ["", STEPS[:1500]]
    references = [f"{STEPS[number : 400 + number]}" for number in range(256)] + ["Text.", STEPS[10:1500]]
    expected = load_scorer(config, CPU).score(answers, references)
    scorer = load_scorer(config, torch.device("cuda:0"))
    assert scorer.score(answers, references).f1 == pytest.approx(expected.f1, abs=1e-4)
    # The similarities of all tokens of 256 pairs take some 170 MB, several times over.
    with almost_full_gpu(left=256 * 2**20):
        assert scorer.score(answers, references).f1 == pytest.approx(expected.f1, abs=1e-4)
    assert "Out of memory with a batch of 512" in caplog.text
