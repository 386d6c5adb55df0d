"""Training: equal to a plain loop, repeatable, resumable, stopped when it goes wrong, and the base stays as it was."""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.support.gpu import almost_full_gpu, needs_gpu
from tests.support.models import weights_digest
from tests.support.programs import ProgramRunner
from tests.training.plain_loop import plain_losses
from transformers import LlamaForCausalLM

from lorahydra.config.schema import LoraConfig, ModelConfig, TrainingConfig
from lorahydra.errors import OutputError, TrainingError
from lorahydra.modeling.base import BaseModel, load_base
from lorahydra.training import TrainedAdapter, TrainingJob, train
from lorahydra.training.health import HealthCheck
from lorahydra.utils.progress import Progress

Examples = Any
TRAINING = TrainingConfig(
    num_train_epochs=2,
    learning_rate=1e-2,
    per_device_train_batch_size=4,
    warmup_ratio=0.0,
    matmul_precision="highest",  # as the plain loop
)


class Recorder:
    """Keeps what training reports."""

    def __init__(self) -> None:
        self.points: list[tuple[int, Mapping[str, float]]] = []

    def __call__(self, values: Mapping[str, float], step: int) -> None:
        self.points.append((step, dict(values)))

    def series(self, name: str) -> list[float]:
        return [values[name] for _, values in self.points if name in values]


def run(
    base: BaseModel, folder: Path, data: Examples, eval_data: Examples, lora: LoraConfig | None = None, **changes: Any
) -> tuple[TrainedAdapter, Recorder]:
    recorder = Recorder()
    training = dataclasses.replace(TRAINING, **changes)
    job = TrainingJob(lora or LoraConfig(r=4, lora_alpha=8), training, 7, folder, recorder)
    [trained] = train(base, [job], data, eval_data, Progress(live=False))
    return trained, recorder


def test_the_first_ten_steps_equal_a_plain_loop(
    base: BaseModel, tiny_model: Path, tmp_path: Path, examples: Examples, eval_examples: Examples
) -> None:
    _, recorder = run(base, tmp_path, examples, eval_examples)
    expected = plain_losses(tiny_model, examples, r=4, alpha=8, seed=7, batch=4, rate=1e-2, epochs=2)
    assert recorder.series("train/loss")[:10] == pytest.approx(expected[:10], rel=1e-4)


def test_training_learns_and_reports(
    base: BaseModel, tmp_path: Path, examples: Examples, eval_examples: Examples
) -> None:
    trained, recorder = run(base, tmp_path, examples, eval_examples, num_train_epochs=10)
    losses = recorder.series("train/loss")
    assert trained.steps == len(losses) == 60
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert len(recorder.series("eval/loss")) == 10, "once per epoch"
    assert min(recorder.series("eval/loss")) == trained.eval_loss < recorder.series("eval/loss")[0]
    for name in ("train/learning_rate", "train/grad_norm", "train/tokens_per_second"):
        assert len(recorder.series(name)) == 60
    assert all(speed > 0 for speed in recorder.series("train/tokens_per_second"))
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {file.name for file in trained.folder.iterdir()}


def test_the_validation_loss_is_the_mean_over_tokens(
    base: BaseModel, tmp_path: Path, examples: Examples, eval_examples: Examples
) -> None:
    losses = [
        run(base, tmp_path / str(size), examples, eval_examples, per_device_eval_batch_size=size)[0].eval_loss
        for size in (1, 3, 8)
    ]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5), "whatever the batches are"


def test_the_same_seed_gives_the_same_adapter(
    base: BaseModel, tmp_path: Path, examples: Examples, eval_examples: Examples
) -> None:
    lora = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1)
    first, one = run(base, tmp_path / "a", examples, eval_examples, lora)
    second, two = run(base, tmp_path / "b", examples, eval_examples, lora)
    assert one.series("train/loss") == two.series("train/loss")
    files = [trained.folder / "adapter_model.safetensors" for trained in (first, second)]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    "lora",
    [
        LoraConfig(r=4, lora_alpha=8),
        LoraConfig(r=4, lora_alpha=8, use_rslora=True),
        LoraConfig(r=4, lora_alpha=8, use_dora=True),
        LoraConfig(r=4, lora_alpha=8, init_lora_weights="pissa_niter_4"),
    ],
    ids=["lora", "rslora", "dora", "pissa"],
)
def test_every_variant_learns_and_leaves_the_base_bit_identical(
    lora: LoraConfig, base: BaseModel, tmp_path: Path, examples: Examples, eval_examples: Examples
) -> None:
    before = weights_digest(base.model)
    _, recorder = run(base, tmp_path, examples, eval_examples, lora, num_train_epochs=4)
    assert recorder.series("train/loss")[-1] < recorder.series("train/loss")[0]
    assert weights_digest(base.model) == before
    assert type(base.model) is LlamaForCausalLM


def test_a_rate_that_explodes_ends_the_trial_with_a_reason(
    base: BaseModel, tmp_path: Path, examples: Examples, eval_examples: Examples
) -> None:
    before = weights_digest(base.model)
    with pytest.raises(
        TrainingError, match="training stopped at step .*; try a lower training.learning_rate"
    ) as caught:
        run(base, tmp_path, examples, eval_examples, LoraConfig(r=4, lora_alpha=4096), learning_rate=1.0)
    assert caught.value.reason == "nan"
    assert weights_digest(base.model) == before
    assert not (tmp_path / "adapter").exists(), "nothing half-written"


def test_a_loss_that_runs_away_is_divergence() -> None:
    health = HealthCheck(divergence_factor=2.0)

    def log(*losses: float) -> None:
        for loss in losses:
            health.check(9, {"loss": loss})

    log(1.0, 1.2, 0.8, 1.0, 1.0, 4.0, 1.0, 1.0)
    log(0.5, 0.5)  # one bad batch among good ones is none
    with pytest.raises(TrainingError, match="training diverged at step 9: the loss rose from 1.000 to") as caught:
        log(2.5, 3.0, 3.5, 4.0)
    assert caught.value.reason == "diverged"


def test_a_loss_that_is_no_number_ends_the_trial_with_a_reason(
    base: BaseModel, tmp_path: Path, examples: Examples, eval_examples: Examples
) -> None:
    weight = base.model.model.norm.weight
    original = weight.data.clone()
    try:
        weight.data[0] = float("nan")
        with pytest.raises(TrainingError, match="training stopped at step 1: loss is nan") as caught:
            run(base, tmp_path, examples, eval_examples)
    finally:
        weight.data.copy_(original)
    assert caught.value.reason == "nan"


def test_running_out_of_memory_ends_the_trial_with_a_reason(
    base: BaseModel, tmp_path: Path, examples: Examples, eval_examples: Examples
) -> None:
    before = weights_digest(base.model)
    # Really asks the allocator for more than any machine has, in the middle of a step.
    handle = base.model.model.layers[1].register_forward_hook(lambda *_: torch.empty(2**55))
    try:
        with pytest.raises(TrainingError, match="out of memory while training: try a smaller") as caught:
            run(base, tmp_path, examples, eval_examples)
    finally:
        handle.remove()
    assert caught.value.reason == "out_of_memory"
    assert weights_digest(base.model) == before


def test_an_output_folder_that_cannot_be_written_is_one_line(
    base: BaseModel, tmp_path: Path, examples: Examples, eval_examples: Examples
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write to"):
        run(base, tmp_path / "file", examples, eval_examples)


def weights(trained: TrainedAdapter) -> bytes:
    return (trained.folder / "adapter_model.safetensors").read_bytes()


KILLED_TRIAL = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from training.conftest import Examples
from lorahydra.config.schema import DataConfig, LoraConfig, ModelConfig, TrainingConfig
from lorahydra.data import ChatFormat, load_splits, tokenize
from lorahydra.modeling.base import load_base
from lorahydra.training import TrainingJob, train

def die(values, step):
    if step == {step} and "train/loss" in values:
        os.kill(os.getpid(), signal.SIGKILL)

base = load_base(ModelConfig(name_or_path={model!r}, device="cpu"))
lora = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.2)
job = TrainingJob(lora, TrainingConfig(**{training!r}), 7, Path({folder!r}), die)
train(base, [job], Examples(24), Examples(8, seed=1))
"""


@pytest.mark.slow
def test_a_killed_trial_goes_on_from_its_checkpoint(
    base: BaseModel,
    tiny_model: Path,
    tmp_path: Path,
    examples: Examples,
    eval_examples: Examples,
    programs: ProgramRunner,
) -> None:
    # Within an epoch; tests of checkpoints go on from the end of one.
    step, kept = 10, 8
    lora = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.2)
    uninterrupted, whole = run(base, tmp_path / "whole", examples, eval_examples, lora, save_steps=2)
    script = KILLED_TRIAL.format(
        tests=str(Path(__file__).parents[1]),
        model=str(tiny_model),
        training=dataclasses.asdict(dataclasses.replace(TRAINING, save_steps=2)),
        folder=str(tmp_path / "killed"),
        step=step,
    )
    killed = programs.run(["-c", script], tmp_path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    checkpoints = tmp_path / "killed" / "checkpoints"
    assert {path.name for path in checkpoints.iterdir()} == {f"checkpoint-{kept - 2}", f"checkpoint-{kept}"}
    assert json.loads((checkpoints / f"checkpoint-{kept}" / "lorahydra.json").read_text())["found"]["steps"] == kept
    # What a kill in the middle of saving leaves behind.
    (checkpoints / "checkpoint-99").mkdir()

    resumed, rest = run(base, tmp_path / "killed", examples, eval_examples, lora, save_steps=2, resume=True)
    assert rest.series("train/loss") == pytest.approx(whole.series("train/loss")[kept:], rel=1e-6)
    assert resumed.eval_loss == uninterrupted.eval_loss
    assert weights(resumed) == weights(uninterrupted)


def test_nothing_to_resume_is_said(
    base: BaseModel, tmp_path: Path, examples: Examples, eval_examples: Examples, caplog: pytest.LogCaptureFixture
) -> None:
    run(base, tmp_path, examples, eval_examples, resume=True, max_steps=2)
    assert any("there is no checkpoint in" in record.getMessage() for record in caplog.records)


@pytest.fixture
def gpu_base(tiny_model: Path) -> BaseModel:
    return load_base(ModelConfig(name_or_path=str(tiny_model)))


@needs_gpu
def test_a_gpu_trains_in_bfloat16(
    gpu_base: BaseModel, tmp_path: Path, examples: Examples, eval_examples: Examples
) -> None:
    assert (gpu_base.device.type, gpu_base.dtype) == ("cuda", torch.bfloat16)
    before = weights_digest(gpu_base.model)
    trained, recorder = run(gpu_base, tmp_path, examples, eval_examples, num_train_epochs=10)
    assert recorder.series("train/loss")[-1] < recorder.series("train/loss")[0]
    assert weights_digest(gpu_base.model) == before
    assert {tensor.dtype for tensor in load_file(trained.folder / "adapter_model.safetensors").values()} == {
        torch.float32
    }


@needs_gpu
@pytest.mark.parametrize(
    ("model", "lora", "training", "tolerance"),
    [
        ({}, {}, {}, 1e-3),
        ({}, {}, {"gradient_checkpointing": True}, 1e-3),
        ({}, {}, {"gradient_accumulation_steps": 3}, 2e-3),
        ({}, {"use_dora": True}, {}, 2e-3),
        ({}, {"init_lora_weights": "pissa"}, {}, 2e-3),
        ({}, {}, {"optim": "muon"}, 2e-3),
        ({}, {}, {"optim": "adafactor"}, 2e-3),
        ({"quantization": "nf4"}, {}, {}, 2e-3),
        ({"quantization": "int8"}, {}, {}, 2e-3),
        ({"quantization": "nf4"}, {}, {"gradient_checkpointing": True}, 2e-3),
    ],
    ids=str,
)
def test_a_gpu_follows_the_cpu(
    tiny_model: Path,
    tmp_path: Path,
    examples: Examples,
    eval_examples: Examples,
    model: dict[str, Any],
    lora: dict[str, Any],
    training: dict[str, Any],
    tolerance: float,
) -> None:
    settings = ModelConfig(name_or_path=str(tiny_model), dtype="float32", **model)
    found = {}
    for device in ("cpu", "cuda"):
        base = load_base(dataclasses.replace(settings, device=device))
        config = LoraConfig(r=4, lora_alpha=8, **lora)
        before = weights_digest(base.model)
        found[device] = run(base, tmp_path / device, examples, eval_examples, config, **training)
        assert weights_digest(base.model) == before
    (expected, cpu), (actual, gpu) = found["cpu"], found["cuda"]
    assert gpu.series("train/loss") == pytest.approx(cpu.series("train/loss"), rel=tolerance)
    assert actual.eval_loss == pytest.approx(expected.eval_loss, rel=tolerance)


@needs_gpu
@pytest.mark.parametrize("optim", ["paged_adamw_8bit", "adamw_8bit", "lion_32bit", "adamw_torch_fused"])
def test_a_gpu_trains_with_other_optimisers(
    gpu_base: BaseModel, tmp_path: Path, examples: Examples, eval_examples: Examples, optim: str
) -> None:
    trained, recorder = run(gpu_base, tmp_path, examples, eval_examples, optim=optim, learning_rate=2e-3)
    losses = recorder.series("train/loss")
    assert len(losses) == trained.steps
    assert losses[-1] < losses[0]


@needs_gpu
def test_a_full_gpu_ends_a_trial_and_not_the_next_one(gpu_base: BaseModel, tmp_path: Path, eval_examples: Any) -> None:
    examples = type(eval_examples)(200)
    run(gpu_base, tmp_path / "before", examples, eval_examples, max_steps=2)
    allocated = torch.cuda.memory_allocated()
    with almost_full_gpu(left=2**20):
        with pytest.raises(TrainingError, match="out of memory while training") as caught:
            run(gpu_base, tmp_path / "full", examples, eval_examples, per_device_train_batch_size=200)
        assert caught.value.reason == "out_of_memory"
    del caught
    run(gpu_base, tmp_path / "after", examples, eval_examples, max_steps=2)
    assert torch.cuda.memory_allocated() <= allocated + 2**20


@needs_gpu
def test_a_gpu_goes_on_from_a_checkpoint(
    gpu_base: BaseModel, tmp_path: Path, examples: Examples, eval_examples: Examples
) -> None:
    whole, recorded = run(gpu_base, tmp_path / "whole", examples, eval_examples, save_steps=2)
    stopped = TrainingJob(
        LoraConfig(r=4, lora_alpha=8),
        dataclasses.replace(TRAINING, save_steps=2),
        7,
        tmp_path / "stopped",
        lambda _, step: sys.exit("stopped") if step == 7 else None,
    )
    with pytest.raises(SystemExit):
        train(gpu_base, [stopped], examples, eval_examples, Progress(live=False))
    resumed, rest = run(gpu_base, tmp_path / "stopped", examples, eval_examples, save_steps=2, resume=True)
    assert rest.series("train/loss") == pytest.approx(recorded.series("train/loss")[6:], rel=1e-2)
    assert resumed.eval_loss == pytest.approx(whole.eval_loss, rel=1e-2)
