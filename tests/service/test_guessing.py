"""What the estimate knows of a model and its training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lorahydra.config.compose import compose
from lorahydra.service import guessing
from lorahydra.service.guessing import guess_trial, weights_of

ROWS = {"train": 1000, "validation": 50, "test": 50}


def write_weights(folder: Path, dtype: str, size: int) -> Path:
    """A model's folder with 1.5 million weights."""
    shapes = {"a": [1000, 1000], "b": [500, 1000]}
    head = {name: {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()}
    content = json.dumps({"__metadata__": {"format": "pt"}, **head}).encode()
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(len(content).to_bytes(8, "little") + content + bytes(size))
    return folder


def seconds(model: Path, *overrides: str) -> float:
    config = compose(["model=local", f"model.name_or_path={model}", "model.device=cpu", *overrides])
    guessed, _ = guess_trial(config, ROWS, 400_000)
    assert guessed is not None
    return guessed - guessing.OVERHEAD


def test_weights_are_counted_whatever_their_dtype(tmp_path: Path) -> None:
    for dtype, size in (("F32", 60), ("BF16", 30), ("F16", 30)):
        assert weights_of(str(write_weights(tmp_path / dtype, dtype, size))) == 1_500_000
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "model.safetensors").write_bytes(b"x" * 3_000_000)
    assert weights_of(str(damaged)) == 1_500_000
    assert weights_of("Qwen/Qwen3-0.6B") == 6e8
    assert weights_of("owner/unknown") is None


def test_max_steps_bounds_the_training(tmp_path: Path) -> None:
    model, none = write_weights(tmp_path / "model", "F32", 0), ("evaluation.max_new_tokens=1",)
    whole = seconds(model, "training.num_train_epochs=3", *none)
    assert seconds(model, "training.num_train_epochs=6", *none) == pytest.approx(2 * whole, rel=0.05)
    few = seconds(model, "training.num_train_epochs=3", "training.max_steps=75", *none)
    assert few == pytest.approx(whole / 10, rel=0.3)  # 75 batches of 4 instead of 3000 rows
    more = seconds(model, "training.max_steps=75", "training.gradient_accumulation_steps=4", *none)
    assert more > 3 * few


def test_pairs_and_what_is_forgotten_take_time(tmp_path: Path) -> None:
    model = write_weights(tmp_path / "model", "F32", 0)
    given = ("training.max_steps=75", "training.per_device_train_batch_size=4", "evaluation.max_new_tokens=1")
    rows, pairs = (seconds(model, *given, f"training.method={method}") for method in ("sft", "dpo"))
    assert pairs == pytest.approx(2 * rows, rel=0.1)
    assert seconds(model, *given, "evaluation.forgetting=all") > rows
    assert seconds(model, *given, "evaluation.forgetting=winner") == rows, "once in a study"


@pytest.mark.parametrize(("has_bfloat16", "ratio"), [(True, 0.5), (False, 4.0)])
def test_the_dtype_decides_the_speed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_bfloat16: bool, ratio: float
) -> None:
    monkeypatch.setattr(guessing, "_multiplies_in_bfloat16", lambda: has_bfloat16)
    model = write_weights(tmp_path / "model", "F32", 0)
    assert seconds(model, "model.dtype=float32") == seconds(model)
    assert seconds(model, "model.dtype=bfloat16") == pytest.approx(ratio * seconds(model))
