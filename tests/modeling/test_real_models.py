"""The real packaged models, which no other test of modeling and training loads: tiny ones stand for them elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.support.models import weights_digest
from tests.training.plain_loop import plain_losses

from lorahydra.config.schema import DataConfig, LoraConfig, ModelConfig, TrainingConfig
from lorahydra.data import ChatFormat, load_splits, tokenize
from lorahydra.modeling.base import load_base
from lorahydra.modeling.lora import adapter, load_adapter, save_adapter
from lorahydra.modeling.packaged import PACKAGED
from lorahydra.training import TrainingJob, train
from lorahydra.utils.progress import Progress

pytestmark = pytest.mark.slow


def test_the_encoder_is_ready_for_bertscore(minilm: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    model, report = AutoModel.from_pretrained(minilm, local_files_only=True, output_loading_info=True)
    assert not report["missing_keys"]
    assert model.config.num_hidden_layers == PACKAGED["all-minilm-l6-v2"].num_layers
    tokenizer = AutoTokenizer.from_pretrained(minilm, local_files_only=True)
    assert tokenizer("a test")["input_ids"][0] == tokenizer.cls_token_id


def test_the_chat_model_keeps_its_licence_and_origin(smollm: Path) -> None:
    assert "Apache License" in (smollm / "LICENSE").read_text()
    assert PACKAGED["smollm2-135m-instruct"].sha256 in (smollm / "lorahydra.json").read_text()
    assert "quantization_config" not in (smollm / "config.json").read_text()
    assert "local" not in (smollm / "tokenizer_config.json").read_text()


def test_the_chat_model_answers(smollm: Path, capfd: pytest.CaptureFixture[str]) -> None:
    base = load_base(ModelConfig(name_or_path="smollm2-135m-instruct", device="cpu"))
    assert base.source == "smollm2-135m-instruct"
    prompt = base.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    out = base.model.generate(**prompt, max_new_tokens=20, do_sample=False)
    answer = base.tokenizer.decode(out[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answer.strip() == "The capital of France is Paris."
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_pissa_on_the_chat_model_is_kept_by_saving(smollm: Path, tmp_path: Path) -> None:
    base = load_base(ModelConfig(name_or_path="smollm2-135m-instruct", device="cpu"))
    digest = weights_digest(base.model)
    ids = torch.arange(3, 23)[None]

    def logits(model: torch.nn.Module) -> torch.Tensor:
        with torch.no_grad():
            return model(ids).logits

    config = LoraConfig(r=8, target_modules=r".*layers\.[0-3]\..*_proj", init_lora_weights="pissa")
    with adapter(base, config, seed=1) as model:
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
        for _ in range(2):
            model(ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        expected = logits(model.eval())
        save_adapter(model, tmp_path / "adapter")
    assert weights_digest(base.model) == digest
    with load_adapter(base, tmp_path / "adapter") as loaded:
        torch.testing.assert_close(logits(loaded), expected, rtol=1e-3, atol=1e-3)


def test_the_first_steps_of_training_equal_a_plain_loop(smollm: Path, tmp_path: Path) -> None:
    base = load_base(ModelConfig(name_or_path="smollm2-135m-instruct", device="cpu"))
    splits = load_splits(DataConfig(train_file="demo", max_train_rows=3, max_eval_rows=1), seed=7)
    chat = ChatFormat(base.tokenizer)
    data, eval_data = (
        tokenize(split, chat, max_length=512, overlong="error") for split in (splits.train, splits.validation)
    )
    metrics: list[dict[str, float]] = []
    training = TrainingConfig(
        num_train_epochs=1,
        per_device_train_batch_size=1,
        learning_rate=5e-4,
        warmup_ratio=0.0,
        matmul_precision="highest",  # as the plain loop
    )
    job = TrainingJob(LoraConfig(), training, 7, tmp_path, lambda values, _: metrics.append(dict(values)))
    train(base, [job], data, eval_data, Progress(live=False))
    expected = plain_losses(smollm, data, r=16, alpha=32, seed=7, batch=1, rate=5e-4, epochs=1)
    assert len(expected) == 3
    assert [m["train/loss"] for m in metrics if "train/loss" in m] == pytest.approx(expected, rel=1e-4)
