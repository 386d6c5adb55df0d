"""A training that goes on: from which checkpoint, with which settings, and not at all once it has ended."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.training.conftest import Examples

from lorahydra.config.schema import LoraConfig, TrainingConfig
from lorahydra.errors import ConfigError
from lorahydra.modeling.base import BaseModel
from lorahydra.training import TrainedAdapter, TrainingJob, train

Begun = Callable[..., Path]
LORA = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.2)
TRAINING = TrainingConfig(learning_rate=5e-3, num_train_epochs=2, per_device_train_batch_size=4, save_steps=2)
STEPS = 12


class Dies:
    """Keeps the steps that were made, and dies at one of them."""

    def __init__(self, at: int | None = None) -> None:
        self.steps: list[int] = []
        self.metrics: dict[str, float] = {}
        self._at = at

    def __call__(self, values: Mapping[str, float], step: int) -> None:
        self.metrics |= values
        if "train/loss" in values:
            self.steps.append(step)
            if step == self._at:
                raise KeyboardInterrupt


@dataclasses.dataclass
class Place:
    """Where a training is run again and again."""

    base: BaseModel
    folder: Path
    examples: Examples
    validation: Examples
    begun: Begun | None = None

    def begin(self, dies_at: int | None = None, **changes: object) -> None:
        """Have a training here that ended, or died at a step."""
        assert self.begun is not None
        shutil.copytree(self.begun(dies_at, **changes), self.folder)

    def run(self, heard: Dies, lora: LoraConfig = LORA, seed: int = 7, **changes: object) -> TrainedAdapter:
        job = TrainingJob(lora, dataclasses.replace(TRAINING, **changes), seed, self.folder, heard)  # type: ignore[arg-type]
        [trained] = train(self.base, [job], self.examples, self.validation)
        return trained

    def again(self, **changes: object) -> tuple[bytes, float, list[int]]:
        heard = Dies()
        trained = self.run(heard, **({"resume": True} | changes))  # type: ignore[arg-type]
        return adapter(trained), trained.eval_loss, heard.steps


def adapter(trained: TrainedAdapter) -> bytes:
    return (trained.folder / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def begun(base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Begun:
    """Makes a training that ends, or dies at a step, once for each settings; its folder is to be copied."""

    @functools.cache
    def begun(dies_at: int | None, **changes: object) -> Path:
        place = Place(base, tmp_path_factory.mktemp("begun") / "trial", Examples(24), Examples(8, seed=1))
        with contextlib.suppress(KeyboardInterrupt):
            place.run(Dies(dies_at), **changes)  # type: ignore[arg-type]
        return place.folder

    return begun


@pytest.fixture
def place(base: BaseModel, tmp_path: Path, examples: Examples, eval_examples: Examples, begun: Begun) -> Place:
    return Place(base, tmp_path / "trial", examples, eval_examples, begun)


@pytest.fixture(scope="module")
def whole(base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, float]:
    place = Place(base, tmp_path_factory.mktemp("whole") / "trial", Examples(24), Examples(8, seed=1))
    trained = place.run(Dies(), save_steps=0)
    assert trained.steps == STEPS
    return adapter(trained), trained.eval_loss


@pytest.mark.parametrize("save_steps", [0, 5])
def test_a_training_that_has_ended_is_not_repeated(place: Place, save_steps: int) -> None:
    first = place.run(Dies(), save_steps=save_steps)
    before = adapter(first), first.folder.stat().st_ino
    heard = Dies()
    again = place.run(heard, resume=True)
    assert dataclasses.asdict(again) == dataclasses.asdict(first)
    assert (adapter(again), again.folder.stat().st_ino) == before, "the file was not written again"
    assert heard.steps == []
    assert heard.metrics == {"eval/loss": first.eval_loss, "eval/best_step": first.best_step}


def test_a_checkpoint_of_the_last_step_takes_no_further_one(place: Place, whole: tuple[bytes, float]) -> None:
    place.begin()
    # Killed between the last checkpoint and the adapter.
    (place.folder / "training.json").unlink()
    shutil.rmtree(place.folder / "adapter")
    assert place.again() == (*whole, [])


def test_a_damaged_adapter_is_made_again(place: Place, whole: tuple[bytes, float]) -> None:
    place.begin(save_steps=5)
    path = place.folder / "adapter" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert place.again() == (*whole, []), "from the last checkpoint"


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "training_state.pt", "lorahydra.json"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    place: Place, whole: tuple[bytes, float], file: str, caplog: pytest.LogCaptureFixture
) -> None:
    place.begin(dies_at=7)
    damaged = place.folder / "checkpoints" / "checkpoint-6"
    content = (damaged / file).read_bytes()
    (damaged / file).write_bytes(content[: len(content) // 2])
    assert place.again() == (*whole, list(range(5, STEPS + 1)))
    assert f"{damaged} is not whole" in caplog.text
    assert len(caplog.text.splitlines()) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"lora": dataclasses.replace(LORA, use_dora=True)},
        {"lora": dataclasses.replace(LORA, plus_ratio=4.0), "optim": "muon"},
        {"optim": "ademamix_8bit", "extra": {"min_8bit_size": 64}},
        {"optim": "paged_lion_32bit", "learning_rate": 1e-3},
    ],
)
def test_layers_of_pefts_own_and_any_optimiser_go_on(place: Place, changes: dict[str, Any]) -> None:
    whole = adapter(place.run(Dies(), **changes))
    with pytest.raises(KeyboardInterrupt):
        place.run(Dies(at=7), **changes)
    assert place.again(**changes)[::2] == (whole, list(range(7, STEPS + 1)))


def test_a_checkpoint_of_another_version_is_not_taken(
    place: Place, whole: tuple[bytes, float], caplog: pytest.LogCaptureFixture
) -> None:
    place.begin(dies_at=3)
    seal = place.folder / "checkpoints" / "checkpoint-2" / "lorahydra.json"
    record = json.loads(seal.read_text())
    del record["files"]["training_state.pt"]
    seal.write_text(json.dumps(record))
    assert place.again() == (*whole, list(range(1, STEPS + 1)))
    assert "checkpoint-2 was made by another version" in caplog.text


def test_without_a_whole_checkpoint_it_begins_anew(place: Place, whole: tuple[bytes, float]) -> None:
    place.begin(dies_at=3)
    (place.folder / "checkpoints" / "checkpoint-2" / "training_state.pt").unlink()
    assert place.again() == (*whole, list(range(1, STEPS + 1)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": LoraConfig(r=8, lora_alpha=8, lora_dropout=0.2)}, r"lora.r: 4 → 8"),
        ({"lora": LoraConfig(r=4, lora_alpha=8, lora_dropout=0.2, plus_ratio=16)}, r"lora.plus_ratio: 1.0 → 16"),
        ({"learning_rate": 1e-3}, r"training.learning_rate: 0.005 → 0.001"),
        ({"extra": {"eps": 1e-6}}, r"training.extra: \{\} → "),
        ({"num_train_epochs": 3.0}, r"training.num_train_epochs"),
        ({"seed": 8}, r"seed: 7 → 8"),
    ],
)
@pytest.mark.parametrize("ended", [False, True])
def test_other_settings_are_refused_in_one_line(
    place: Place, changes: dict[str, object], message: str, ended: bool
) -> None:
    if ended:
        place.begin(max_steps=2)
        changes = {"max_steps": 2, **changes}
    else:
        place.begin(dies_at=3)
    with pytest.raises(ConfigError, match=rf"training.resume=true cannot go on from .*\({message}") as caught:
        place.again(**changes)
    assert "\n" not in str(caught.value)


def test_other_examples_are_refused(place: Place) -> None:
    place.begin(max_steps=2)
    place.examples = Examples(23)
    with pytest.raises(ConfigError, match=r"other settings \(content of the training rows\)"):
        place.again(max_steps=2)


def test_what_changes_no_adapter_may_change(place: Place, whole: tuple[bytes, float]) -> None:
    place.begin(dies_at=7)
    resumed = place.again(save_steps=4, logging_steps=3, per_device_eval_batch_size=3, divergence_factor=9.0)
    assert resumed[0] == whole[0]


def test_a_new_training_forgets_an_old_ones_checkpoints(place: Place) -> None:
    place.begin()
    with pytest.raises(KeyboardInterrupt):
        place.run(Dies(at=3))
    assert [path.name for path in (place.folder / "checkpoints").iterdir()] == ["checkpoint-2"]
    assert not (place.folder / "training.json").exists()
