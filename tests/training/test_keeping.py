"""Which adapter a training leaves: the best of its validations, or the last."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from tests.training.conftest import Examples

from lorahydra.config.schema import LoraConfig, TrainingConfig
from lorahydra.modeling.base import BaseModel
from lorahydra.modeling.lora import load_adapter
from lorahydra.training import TrainedAdapter, TrainingJob, train, train_pack
from lorahydra.training.batches import collate
from lorahydra.training.health import BestValidation
from lorahydra.training.loss import CompletionLoss
from lorahydra.utils.progress import Progress

TRAINING = TrainingConfig(num_train_epochs=6, learning_rate=1e-2, per_device_train_batch_size=4)
LORA = LoraConfig(r=4, lora_alpha=8)


@pytest.fixture
def others() -> Examples:
    """Validation rows with the answers of other questions: what is learned of the training rows does not hold there."""
    rows = Examples(8, seed=1)
    answers = [[label for label in row["labels"] if label != -100] for row in rows.rows]
    for row, answer in zip(rows.rows, [*answers[1:], answers[0]], strict=True):
        question = row["input_ids"][: row["labels"].count(-100)]
        row["input_ids"], row["labels"] = [*question, *answer], [*[-100] * len(question), *answer]
    return rows


class Curve:
    """Hears validation losses."""

    def __init__(self) -> None:
        self.losses: dict[int, float] = {}
        self.best_step: float | None = None

    def __call__(self, values: Mapping[str, float], step: int) -> None:
        if "eval/loss" in values:
            self.losses[step] = values["eval/loss"]
        self.best_step = values.get("eval/best_step", self.best_step)


def job(folder: Path, **changes: object) -> tuple[TrainingJob, Curve]:
    curve = Curve()
    return TrainingJob(LORA, dataclasses.replace(TRAINING, **changes), 7, folder, curve), curve  # type: ignore[arg-type]


def loss_of(trained: TrainedAdapter, base: BaseModel, rows: Examples) -> float:
    batch = collate([rows[index] for index in range(len(rows))])
    with load_adapter(base, trained.folder) as model, torch.no_grad():
        [total] = CompletionLoss(model)(model, batch["input_ids"], batch["labels"])
    return float(total) / int((batch["labels"] != -100).sum())


def test_the_best_is_kept_and_scored_unless_the_last_is_asked_for(
    base: BaseModel, tmp_path: Path, others: Examples
) -> None:
    made = [job(tmp_path / keep, keep=keep) for keep in ("best", "last")]
    best, last = train_pack(base, [job for job, _ in made], Examples(64), others, Progress(live=False))
    curve = made[0][1]
    assert isinstance(best, TrainedAdapter)
    assert isinstance(last, TrainedAdapter)
    assert list(curve.losses) == [16, 32, 48, 64, 80, 96]
    lowest = min(curve.losses, key=lambda step: curve.losses[step])
    assert lowest < 96, "the training overfits"
    assert (best.steps, best.best_step, curve.best_step) == (96, lowest, lowest)
    assert best.eval_loss == curve.losses[lowest]
    assert loss_of(best, base, others) == pytest.approx(curve.losses[lowest], rel=1e-5)
    assert last.eval_loss == curve.losses[96]
    assert loss_of(last, base, others) == pytest.approx(curve.losses[96], rel=1e-5)


def test_patience_ends_a_training_and_no_other_of_its_pack(base: BaseModel, tmp_path: Path, others: Examples) -> None:
    made = [job(tmp_path / str(index), early_stopping_patience=index) for index in range(2)]
    patient, stopped = train_pack(base, [job for job, _ in made], Examples(64), others, Progress(live=False))
    assert isinstance(patient, TrainedAdapter)
    assert isinstance(stopped, TrainedAdapter)
    assert stopped.steps == list(made[1][1].losses)[-1] == stopped.best_step + 16 < patient.steps == 96
    assert made[0][1].losses.items() >= made[1][1].losses.items()


@pytest.mark.slow
def test_a_resumed_training_knows_the_best_of_before(base: BaseModel, tmp_path: Path, others: Examples) -> None:
    class Dies(Curve):
        def __call__(self, values: Mapping[str, float], step: int) -> None:
            super().__call__(values, step)
            if step == 90 and "train/loss" in values:
                raise KeyboardInterrupt

    data = Examples(64)
    [whole] = train(base, [job(tmp_path / "whole")[0]], data, others, Progress(live=False))
    first = dataclasses.replace(job(tmp_path / "cut", save_steps=40)[0], on_metrics=Dies())
    with pytest.raises(KeyboardInterrupt):
        train(base, [first], data, others, Progress(live=False))
    again, _ = job(tmp_path / "cut", save_steps=40, resume=True)
    [resumed] = train(base, [again], data, others, Progress(live=False))
    assert (resumed.best_step, resumed.eval_loss) == (whole.best_step, whole.eval_loss)
    files = [trained.folder / "adapter_model.safetensors" for trained in (whole, resumed)]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    ("losses", "told"),
    [
        ([3.0, 2.0, 1.0], "the last, at step 3, has the lowest loss: more epochs"),
        ([1.0, 2.0, 3.0], "the first, at step 1, has the lowest loss: fewer epochs"),
        ([2.0, 1.0, 3.0], ""),
        ([2.0, 1.0], ""),
        ([1.0], ""),
    ],
)
def test_a_curve_without_a_valley_is_told(losses: list[float], told: str, caplog: pytest.LogCaptureFixture) -> None:
    best = BestValidation()
    for step, loss in enumerate(losses, start=1):
        best.update(step, loss, None)
    best.warn(Path("trial"))
    assert told in caplog.text
    assert bool(caplog.text) == bool(told)
