"""DPO: the loss is TRL's, the reference is the untuned model, and everything else is as with answers alone."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.support.gpu import needs_gpu
from tests.support.models import weights_digest

from lorahydra.config.schema import LoraConfig, ModelConfig, TrainingConfig
from lorahydra.modeling.base import BaseModel, load_base
from lorahydra.modeling.lora import adapter
from lorahydra.training import TrainedAdapter, TrainingJob, loop, reference, train_pack
from lorahydra.training.batches import collate
from lorahydra.training.loss import CompletionLoss
from lorahydra.training.objectives import Preferences, log_probabilities
from lorahydra.training.reference import with_reference
from lorahydra.utils.progress import Progress

LORA = LoraConfig(r=4, lora_alpha=8)
TRAINING = TrainingConfig(
    method="dpo",
    num_train_epochs=2,
    learning_rate=1e-2,
    per_device_train_batch_size=4,
    evals_per_epoch=2,
    keep="last",
)


class Pairs:
    """Tokenised pairs: the chosen answer repeats the question's bytes, the rejected one counts down."""

    def __init__(self, count: int, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.rows = []
        for _ in range(count):
            prompt = [1, *random.integers(70, 96, random.integers(3, 20)).tolist()]
            row = {}
            for names, answer in (
                (("input_ids", "labels"), [*prompt[1:8], 2]),
                (("rejected_ids", "rejected_labels"), [*range(69, 69 - random.integers(2, 9), -1), 2]),
            ):
                row |= dict(zip(names, ([*prompt, *answer], [-100] * len(prompt) + answer), strict=True))
            self.rows.append(row)

    @property
    def lengths(self) -> list[int]:
        return [max(len(row["input_ids"]), len(row["rejected_ids"])) for row in self.rows]

    @property
    def digest(self) -> str:
        return hashlib.sha256(str(self.rows).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return self.rows[index]


TRAIN, VALIDATION = Pairs(16), Pairs(8, seed=1)
Heard = list[tuple[int, dict[str, float]]]


def trained(
    base: BaseModel, folder: Path, *settings: TrainingConfig, lora: LoraConfig = LORA
) -> tuple[list[Any], list[Heard]]:
    """The outcomes of a pack with these settings, and the figures of each."""
    heard: list[Heard] = [[] for _ in settings]

    def listener(place: int) -> Any:
        return lambda values, step: heard[place].append(
            (step, {name: value for name, value in values.items() if name != "train/tokens_per_second"})
        )

    jobs = [TrainingJob(lora, each, 7, folder / str(n), listener(n)) for n, each in enumerate(settings)]
    return train_pack(base, jobs, TRAIN, VALIDATION, Progress(live=False)), heard


def weights(outcome: Any) -> dict[str, torch.Tensor]:
    assert isinstance(outcome, TrainedAdapter), outcome
    return load_file(outcome.folder / "adapter_model.safetensors")


def same(one: Any, other: Any) -> bool:
    first, second = weights(one), weights(other)
    return all(torch.equal(value, second[name]) for name, value in first.items())


DIFFERENT = [TRAINING] + [
    dataclasses.replace(TRAINING, **changes)
    for changes in ({"dpo_beta": 0.5, "learning_rate": 3e-3}, {"dpo_label_smoothing": 0.2, "max_grad_norm": 0.1})
]


@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_each_of_a_pack_is_bit_for_bit_what_it_is_alone(base: BaseModel, tmp_path: Path, precision: Any) -> None:
    before = weights_digest(base.model)
    settings = [dataclasses.replace(each, matmul_precision=precision) for each in DIFFERENT]
    pack, figures = trained(base, tmp_path / "pack", *settings)
    assert weights_digest(base.model) == before
    for number, setting in enumerate(settings):
        [alone], [heard] = trained(base, tmp_path / f"alone{number}", setting)
        assert same(pack[number], alone)
        assert figures[number] == heard
    # A new adapter is the reference itself.
    assert figures[0][0][1]["train/loss"] == pytest.approx(math.log(2), abs=1e-5)
    last = next(values for _, values in reversed(figures[0]) if "eval/loss" in values)
    assert last["eval/loss"] < 0.6
    assert last["eval/reward_accuracy"] > 0.8
    assert last["eval/reward_margin"] > 0.2


@needs_gpu
@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_a_gpu_follows_the_cpu(tiny_model: Path, tmp_path: Path, quantization: Any) -> None:
    heard = {}
    for device in ("cpu", "cuda"):
        settings = {"device": device, "dtype": "float32", "quantization": quantization}
        base = load_base(ModelConfig(name_or_path=str(tiny_model), **settings))
        together = [dataclasses.replace(each, matmul_precision="highest") for each in DIFFERENT]
        _, heard[device] = trained(base, tmp_path / device, *together)
    for cpu, gpu in zip(heard["cpu"], heard["cuda"], strict=True):
        for (step, expected), (other, actual) in zip(cpu, gpu, strict=True):
            assert step == other
            assert actual == pytest.approx(expected, rel=5e-3, abs=2e-3)


def test_an_adapter_of_its_own_kind_learns_too(base: BaseModel, tmp_path: Path) -> None:
    """DoRA is trained with PEFT's layers, PiSSA changes the base model's weights meanwhile."""
    for number, changes in enumerate(({"use_dora": True}, {"init_lora_weights": "pissa"})):
        setting = dataclasses.replace(TRAINING, matmul_precision="highest")
        _, [heard] = trained(base, tmp_path / str(number), setting, lora=dataclasses.replace(LORA, **changes))
        assert heard[0][1]["train/loss"] == pytest.approx(math.log(2), abs=1e-4)
        assert heard[-2][1]["eval/loss"] < math.log(2)


def test_resuming_ends_as_if_it_had_never_stopped(base: BaseModel, tmp_path: Path) -> None:
    setting = dataclasses.replace(TRAINING, save_steps=3)
    [whole], _ = trained(base, tmp_path / "whole", setting)
    before = weights(whole)
    (tmp_path / "whole" / "0" / "training.json").unlink()
    for folder in (tmp_path / "whole" / "0" / "checkpoints").glob("checkpoint-8"):
        (folder / "training_state.pt").unlink()  # the last one was not written whole
    reference._known.clear()
    [resumed], [heard] = trained(base, tmp_path / "whole", dataclasses.replace(setting, resume=True))
    assert heard[0][0] == 7
    assert all(torch.equal(value, before[name]) for name, value in weights(resumed).items())


def test_the_reference_is_computed_once(base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference._known.clear()
    computed = []
    monkeypatch.setattr(
        reference, "_computed", lambda *given, found=reference._computed: computed.append(1) or found(*given)
    )
    for name in ("one", "two"):
        trained(base, tmp_path / name, *DIFFERENT)
    assert len(computed) == 2, "the training and the validation split"


def test_recorded_passes_train_the_same(base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = [dataclasses.replace(each, matmul_precision="highest") for each in DIFFERENT]
    usual, _ = trained(base, tmp_path / "usual", *settings)
    recorded: list[Any] = []
    monkeypatch.setattr(loop, "recorder", lambda _: lambda work, *_: recorded.append(work) or work)
    again, _ = trained(base, tmp_path / "recorded", *settings)
    assert recorded
    for one, other in zip(usual, again, strict=True):
        for name, value in weights(one).items():
            torch.testing.assert_close(weights(other)[name], value, rtol=1e-3, atol=1e-4)


def test_parts_of_a_step_are_one_step(base: BaseModel, tmp_path: Path) -> None:
    parts = dataclasses.replace(TRAINING, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    settings = [dataclasses.replace(each, matmul_precision="highest", learning_rate=1e-3) for each in (TRAINING, parts)]
    [whole, split], _ = trained(base, tmp_path, *settings)
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(split)[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_and_its_gradient_are_those_of_trl(base: BaseModel, tmp_path: Path, smoothing: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trl = pytest.importorskip("trl")
        from datasets import Dataset
        from peft import LoraConfig as PeftConfig

        rows = [
            {"prompt": f"{n}+{n}?", "chosen": f"It is {2 * n}.", "rejected": f"No idea, perhaps {n}"} for n in range(4)
        ]
        settings: dict[str, Any] = {
            "beta": 0.3,
            "report_to": "none",
            "use_cpu": True,
            "bf16": False,
            "save_strategy": "no",
        }
        if smoothing:
            # TRL smooths the labels of some losses only; without an order in the batch, this one is the same.
            settings |= {"loss_type": ["aot"], "label_smoothing": smoothing}
            rows = rows[:1]
        trainer = trl.DPOTrainer(
            model=str(base.source),
            args=trl.DPOConfig(output_dir=str(tmp_path), **settings),
            train_dataset=Dataset.from_list(rows),
            processing_class=base.tokenizer,
            peft_config=PeftConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
        model = trainer.model
        named = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
        generator = torch.Generator().manual_seed(0)
        for _, parameter in named:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        batch = trainer.data_collator([trainer.train_dataset[n] for n in range(len(rows))])
        expected = trainer._compute_loss(model, dict(batch), False)
        wanted = torch.autograd.grad(expected, [value for _, value in named])
        reported = {name: values[-1] for name, values in trainer._metrics["train"].items() if "rewards" in name}

    ids, labels = batch["input_ids"], batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    loss = CompletionLoss(model)
    with torch.no_grad(), model.disable_adapter():
        [known] = log_probabilities(loss.each(model, ids, labels), labels)
    objective = Preferences([TrainingConfig(dpo_beta=0.3, dpo_label_smoothing=smoothing)], torch.device("cpu"))
    ours = {"input_ids": ids, "labels": labels, "reference": known}
    figures = objective.sums(loss.each(model, ids, labels), ours)[:, 0] / objective.items(ours)
    gradients = torch.autograd.grad(figures[0], [value for _, value in named])
    torch.testing.assert_close(figures[0], expected, rtol=1e-5, atol=1e-5)
    for actual, value in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(actual, value, rtol=1e-5, atol=1e-5)
    assert max(float(value.abs().max()) for value in wanted) > 1e-3
    assert figures[1].item() == reported["rewards/accuracies"]
    assert figures[2].item() == pytest.approx(reported["rewards/margins"], abs=1e-5)


def test_the_reference_is_the_model_without_its_adapter(base: BaseModel) -> None:
    data = with_reference(base, VALIDATION, "highest", Progress(live=False), training=False)
    batch = collate([data[row] for row in range(3)])
    with adapter(base, LORA, 7) as model, torch.no_grad():
        loss = CompletionLoss(model)
        losses = loss.each(model, batch["input_ids"], batch["labels"])
        [own] = log_probabilities(losses, batch["labels"])
    torch.testing.assert_close(batch["reference"], own, rtol=1e-5, atol=1e-4)
    assert batch["input_ids"].shape[0] == 6
