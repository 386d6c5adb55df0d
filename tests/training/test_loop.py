"""Adapters that are trained side by side: each as if it were alone."""

from __future__ import annotations

import copy
import dataclasses
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.support.models import weights_digest
from tests.training.conftest import Examples as RandomExamples
from transformers import Adafactor, get_scheduler

from lorahydra.config.schema import LoraConfig, ModelConfig, TrainingConfig
from lorahydra.errors import ConfigError, LorahydraError, TrainingError, TrialPruned
from lorahydra.modeling import packing
from lorahydra.modeling.base import BaseModel, load_base
from lorahydra.modeling.cpu_linear import multiplies_bfloat16
from lorahydra.modeling.cuda_graphs import NotRecordableError
from lorahydra.modeling.lora import adapter, save_adapter
from lorahydra.modeling.precision import matmul_precision
from lorahydra.training import Standing, TrainedAdapter, TrainingJob, check_settings, loop, train_pack
from lorahydra.training.batches import collate, epoch_order
from lorahydra.training.loss import CompletionLoss
from lorahydra.training.recorded import padded
from lorahydra.utils.progress import Progress

Examples = Any
Setting = tuple[LoraConfig, TrainingConfig]
Weights = dict[str, torch.Tensor]

LORA = LoraConfig(r=4, lora_alpha=8)
TRAINING = TrainingConfig(
    num_train_epochs=2,
    learning_rate=1e-2,
    per_device_train_batch_size=4,
    warmup_ratio=0.1,
    evals_per_epoch=2,
    keep="last",
    matmul_precision="highest",
)
STEPS = 8


def changed(lora: Mapping[str, Any], **training: Any) -> Setting:
    return dataclasses.replace(LORA, **lora), dataclasses.replace(TRAINING, **training)


DIFFERENT = [
    (LORA, TRAINING),
    changed({"lora_alpha": 12}, learning_rate=3e-3, weight_decay=0.1),
    changed({"lora_alpha": 10, "use_rslora": True}, lr_scheduler_type="cosine", max_grad_norm=0.3),
    changed({"lora_alpha": 7}, warmup_ratio=0.0, max_grad_norm=0.0, learning_rate=2e-2),
]
BROKEN = changed({"lora_alpha": 2**20}, learning_rate=1.0, max_grad_norm=0.0)


class Place:
    """A base model and examples, on which settings are trained."""

    def __init__(self, base: BaseModel, folder: Path, data: Examples, validation: Examples) -> None:
        self.base, self.folder, self.data, self.validation = base, folder, data, validation
        self.heard: dict[Path, list[tuple[int, dict[str, float]]]] = {}

    def train(
        self, settings: Sequence[Setting], name: str, race_of: Any = None
    ) -> list[TrainedAdapter | LorahydraError]:
        jobs = [
            TrainingJob(lora, training, 7, self.folder / name / str(index))
            for index, (lora, training) in enumerate(settings)
        ]
        jobs = [dataclasses.replace(job, on_metrics=self._listener(job.output_dir)) for job in jobs]
        return train_pack(self.base, jobs, self.data, self.validation, Progress(live=False), race_of)

    def _listener(self, folder: Path) -> Any:
        def hear(values: Mapping[str, float], step: int) -> None:
            kept = {name: value for name, value in values.items() if name != "train/tokens_per_second"}
            self.heard.setdefault(folder, []).append((step, kept))

        return hear

    def figures(self, name: str, index: int) -> list[tuple[int, dict[str, float]]]:
        return self.heard[self.folder / name / str(index)]


_alone: dict[str, tuple[Weights, list[tuple[int, dict[str, float]]]]] = {}


def trained_alone(place: Place, setting: Setting) -> tuple[Weights, list[tuple[int, dict[str, float]]]]:
    """Weights and figures of an adapter that is trained alone on the tiny model, once for all tests."""
    if (key := repr(setting)) not in _alone:
        name = f"trained alone {len(_alone)}"
        [outcome] = place.train([setting], name)
        _alone[key] = weights(outcome), place.figures(name, 0)
    return _alone[key]


def weights(outcome: TrainedAdapter | LorahydraError) -> Weights:
    assert isinstance(outcome, TrainedAdapter), outcome
    return load_file(outcome.folder / "adapter_model.safetensors")


def same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.fixture
def examples() -> Examples:
    return RandomExamples(16)


@pytest.fixture
def eval_examples() -> Examples:
    return RandomExamples(4, seed=1)


@pytest.fixture
def place(base: BaseModel, tmp_path: Path, examples: Examples, eval_examples: Examples) -> Place:
    return Place(base, tmp_path, examples, eval_examples)


def by_peft(
    place: Place, lora: LoraConfig, training: TrainingConfig, kind: Callable[..., Any] = torch.optim.AdamW
) -> Weights:
    """The same training with PEFT's layers, the library's own optimiser, and torch's clipping."""
    with adapter(place.base, lora, 7) as model, matmul_precision(place.base, training.matmul_precision):
        loss = CompletionLoss(model)
        named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        parameters, rate = [parameter for _, parameter in named], training.learning_rate
        groups = [
            {"params": [p for name, p in named if "lora_B" not in name], "lr": rate},
            {"params": [p for name, p in named if "lora_B" in name], "lr": rate * lora.plus_ratio},
        ]
        optimizer = kind(groups, lr=rate, weight_decay=training.weight_decay, **training.extra)
        warmup = math.ceil(STEPS * training.warmup_ratio)
        scheduler = get_scheduler(training.lr_scheduler_type, optimizer, warmup, STEPS)
        for epoch in range(2):
            order = epoch_order(place.data.lengths, 4, 7, epoch, group_by_length=True)
            for start in range(0, len(order), 4):
                batch = collate([place.data[row] for row in order[start : start + 4]])
                [total] = loss(model, batch["input_ids"], batch["labels"])
                (total / (batch["labels"][:, 1:] != -100).sum()).backward()
                if training.max_grad_norm:
                    torch.nn.utils.clip_grad_norm_(parameters, training.max_grad_norm)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
        save_adapter(model, place.folder / "peft")
    return load_file(place.folder / "peft" / "adapter_model.safetensors")


@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_each_of_a_pack_is_bit_for_bit_what_it_is_alone_and_with_peft(place: Place, precision: str) -> None:
    before = weights_digest(place.base.model)
    settings = [(lora, dataclasses.replace(training, matmul_precision=precision)) for lora, training in DIFFERENT]
    pack = place.train(settings, "pack")
    assert weights_digest(place.base.model) == before
    for index, setting in enumerate(settings):
        expected, figures = trained_alone(place, setting)
        assert same(weights(pack[index]), expected)
        assert same(weights(pack[index]), by_peft(place, *setting))
        assert place.figures("pack", index) == figures
    steps = [step for step, values in place.figures("pack", 0) if "train/loss" in values]
    assert steps == list(range(1, STEPS + 1))
    assert [step for step, values in place.figures("pack", 0) if "eval/loss" in values] == [2, 4, 6, 8]


@pytest.mark.skipif(not multiplies_bfloat16(), reason="this processor does not multiply in bfloat16")
def test_medium_precision_trains_nearly_the_same_and_in_a_pack_of_its_own(place: Place) -> None:
    highest, medium = place.train([changed({}), changed({}, matmul_precision="medium")], "pack")
    assert not same(weights(highest), weights(medium))
    assert isinstance(highest, TrainedAdapter)
    assert isinstance(medium, TrainedAdapter)
    assert medium.eval_loss == pytest.approx(highest.eval_loss, rel=0.01)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_pack_on_a_quantised_base(place: Place, tiny_model: Path, kind: Any) -> None:
    place.base = load_base(ModelConfig(name_or_path=str(tiny_model), device="cpu", quantization=kind))
    before = weights_digest(place.base.model)
    settings = [changed({"lora_dropout": 0.1}), DIFFERENT[1], changed({"use_dora": True})]
    pack = place.train(settings, "pack")
    assert weights_digest(place.base.model) == before
    [alone] = place.train(settings[:1], "alone")
    assert same(weights(pack[0]), weights(alone))
    for index in (1, 2):
        assert same(weights(pack[index]), by_peft(place, *settings[index]))
    losses = [values["eval/loss"] for _, values in place.figures("pack", 1) if "eval/loss" in values]
    assert losses[-1] < losses[0]


def test_lora_plus_and_arguments_of_the_optimiser(place: Place) -> None:
    settings = [changed({"plus_ratio": 8.0}), changed({"plus_ratio": 2.0}, extra={"betas": [0.8, 0.95]}), DIFFERENT[0]]
    pack = place.train(settings, "pack")
    for outcome, setting in zip(pack, settings, strict=True):
        assert same(weights(outcome), by_peft(place, *setting))


def test_lora_plus_beside_a_larger_rank(place: Place) -> None:
    """Its matrices have gaps in the pack, which a fused optimiser would not see."""
    settings = [changed({"plus_ratio": 4.0}, optim="adamw_torch_fused"), changed({"r": 8}, optim="adamw_torch_fused")]
    beside = weights(place.train(settings, "pack")[0])
    for name, value in trained_alone(place, settings[0])[0].items():
        torch.testing.assert_close(beside[name], value, rtol=1e-3, atol=1e-5)


def test_a_base_in_float16_trains_as_one_in_float32(place: Place) -> None:
    settings = [DIFFERENT[0], changed({"use_dora": True})]
    place.train(settings, "float32")
    half = copy.deepcopy(place.base.model).half()
    place.base = dataclasses.replace(place.base, model=half, dtype=torch.float16)
    place.train(settings, "float16")
    for index in range(2):
        narrow, wide = (
            [values["train/loss"] for _, values in place.figures(name, index) if "train/loss" in values]
            for name in ("float16", "float32")
        )
        assert narrow == pytest.approx(wide, rel=0.01)


@pytest.mark.parametrize(
    ("extra", "layers", "ranks"),
    [({"exclude_modules": r".*layers\.0\..*"}, {"1"}, {4}), ({"rank_pattern": {"q_proj": 2}}, {"0", "1"}, {2, 4})],
)
def test_further_fields_of_peft(place: Place, extra: dict[str, Any], layers: set[str], ranks: set[int]) -> None:
    """The first kind can share a pack; the second is trained alone."""
    settings = [changed({"extra": extra}), changed({"extra": extra, "lora_alpha": 12})]
    for outcome, setting in zip(place.train(settings, "pack"), settings, strict=True):
        trained = weights(outcome)
        assert {name.partition(".layers.")[2].partition(".")[0] for name in trained} == layers
        assert {len(value) for name, value in trained.items() if "lora_A" in name} == ranks
        assert same(trained, by_peft(place, *setting))


@pytest.mark.parametrize(
    ("lora", "training", "message"),
    [
        (
            {"extra": {"layers_to_tranform": [1]}},
            {},
            r"unknown key lora.extra.layers_to_tranform \(did you mean layers_t",
        ),
        ({"extra": {"r": 4}}, {}, r"unknown key lora.extra.r"),
        ({"extra": {"layers_to_transform": [1]}}, {}, "lora.extra=.* cannot be used when `target_modules` is a str"),
        ({}, {"extra": {"beta": [0.9, 0.95]}}, r"unknown key training.extra.beta \(did you mean betas\?\)"),
        ({}, {"extra": {"betas": [0.9, 1.5]}}, r"training.extra=.*betas.*Invalid beta parameter at index 1"),
        ({}, {"optim": "sgd", "extra": {"betas": [0.9, 0.95]}}, "unknown key training.extra.betas: training.extra may"),
        (
            {},
            {"optim": "lion_8bit", "extra": {"eps": 1.0}},
            "unknown key training.extra.eps: training.extra may have be",
        ),
        ({"use_dora": True}, {"optim": "muon"}, "training.optim=muon is not allowed: Muon only supports 2D parameters"),
    ],
)
def test_settings_that_a_library_refuses_are_one_line(
    lora: dict[str, Any], training: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        check_settings(*changed(lora, **training))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_order_and_neighbours_do_not_matter(place: Place, dropout: float) -> None:
    settings = [(dataclasses.replace(lora, lora_dropout=dropout), training) for lora, training in DIFFERENT[:3]]
    pack = place.train([*settings, DIFFERENT[3]], "pack")
    other = place.train([DIFFERENT[3], settings[1]], "other")
    assert same(weights(pack[3]), weights(other[0])), "also beside others with dropout"
    assert same(weights(pack[1]), weights(other[1]))
    without = place.train([DIFFERENT[1]], "without")
    assert same(weights(pack[1]), weights(without[0])) == (dropout == 0.0)


def test_one_that_goes_wrong_leaves_and_the_others_stay_the_same(place: Place) -> None:
    pack = place.train([DIFFERENT[0], BROKEN, DIFFERENT[1]], "pack")
    assert isinstance(pack[1], TrainingError)
    assert pack[1].reason == "nan"
    for index, setting in ((0, DIFFERENT[0]), (2, DIFFERENT[1])):
        assert same(weights(pack[index]), trained_alone(place, setting)[0])
    assert not (place.folder / "pack" / "1").exists(), "nothing half-written"


def test_a_pack_of_which_nothing_is_left_ends(place: Place) -> None:
    outcomes = place.train([BROKEN, BROKEN], "pack")
    assert all(isinstance(outcome, TrainingError) for outcome in outcomes)


def test_a_pruned_adapter_leaves_at_its_validation(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    listener = place._listener

    def prunes(folder: Path) -> Any:
        def hear(values: Mapping[str, float], step: int) -> None:
            listener(folder)(values, step)
            if folder.name == "0" and "eval/loss" in values:
                raise TrialPruned("others did better")

        return hear

    monkeypatch.setattr(place, "_listener", prunes)
    pack = place.train(DIFFERENT[:2], "pack")
    assert isinstance(pack[0], TrialPruned)
    assert place.figures("pack", 0)[-1][0] == 2
    monkeypatch.undo()
    assert same(weights(pack[1]), trained_alone(place, DIFFERENT[1])[0])


class Ends:
    """A race that ends the first of the adapters that are left, at each of its points."""

    def __init__(self, *fractions: float) -> None:
        self.fractions = fractions
        self.seen: list[Standing] = []

    def ended(self, standing: Standing) -> dict[int, LorahydraError]:
        self.seen.append(standing)
        return {0: TrialPruned(f"behind at {standing.fraction}")}


def test_a_race_ends_adapters_and_does_not_change_the_others(place: Place) -> None:
    race, packs = Ends(0.3, 0.5), []

    def race_of(jobs: Sequence[TrainingJob]) -> Ends:
        packs.append(len(jobs))
        return race

    settings = [DIFFERENT[2], DIFFERENT[3], DIFFERENT[0], DIFFERENT[1]]
    pack = place.train(settings, "raced", race_of)
    assert packs == [4]
    assert [str(outcome) for outcome in pack[:2]] == ["behind at 0.3", "behind at 0.5"]
    assert [len(standing.jobs) for standing in race.seen] == [4, 3]
    assert place.figures("raced", 0)[-1][0] == 3
    measured = [step for step, values in place.figures("raced", 0) if "eval/loss" in values]
    assert measured == [2], "a validation for the race alone is not reported"
    for index in (2, 3):
        alone, figures = trained_alone(place, settings[index])
        assert same(weights(pack[index]), alone)
        assert place.figures("raced", index) == figures
    last = race.seen[-1]
    [loss] = [values["eval/loss"] for step, values in place.figures("raced", 2) if step == 4 and "eval/loss" in values]
    assert last.losses[1] == loss == sum(last.parts[1]) / sum(last.items)


def test_an_adapter_that_has_nobody_beside_it_is_not_compared(place: Place) -> None:
    race = Ends(0.3)
    [outcome] = place.train([DIFFERENT[0]], "alone", lambda jobs: race)
    assert isinstance(outcome, TrainedAdapter)
    assert not race.seen


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_ranks_may_differ(place: Place, dtype: torch.dtype, tolerance: float) -> None:
    place.base = dataclasses.replace(place.base, model=copy.deepcopy(place.base.model).to(dtype), dtype=dtype)
    settings = [changed({"r": rank}, max_steps=4, learning_rate=1e-3) for rank in (8, 64, 16)]
    pack = place.train(settings, "pack")
    for index, setting in enumerate(settings):
        alone = place.train([setting], f"alone{index}")
        for name, value in weights(alone[0]).items():
            packed = weights(pack[index])[name]
            assert packed.dtype == value.dtype
            assert float((packed - value).norm()) <= tolerance * float(value.norm()), name


def test_an_optimiser_whose_library_is_missing_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match=r"^training.optim=lion_8bit needs bitsandbytes .*lorahydra\[quantized\]'$"):
        check_settings(*changed({}, optim="lion_8bit"))


EIGHT_BITS = {"min_8bit_size": 64}
# The classes of bitsandbytes are given by name.
LIBRARIES: list[tuple[Callable[..., Any] | str, dict[str, Any]]] = [
    (torch.optim.SGD, {"optim": "sgd", "extra": {"momentum": 0.9}}),
    (torch.optim.Adam, {"optim": "adam"}),
    (torch.optim.Adamax, {"optim": "adamax", "weight_decay": 0.1}),
    (torch.optim.Adadelta, {"optim": "adadelta"}),
    (torch.optim.Adagrad, {"optim": "adagrad"}),
    (torch.optim.NAdam, {"optim": "nadam"}),
    (torch.optim.RAdam, {"optim": "radam"}),
    (torch.optim.RMSprop, {"optim": "rmsprop"}),
    (torch.optim.Muon, {"optim": "muon"}),
    (partial(Adafactor, scale_parameter=False, relative_step=False), {"optim": "adafactor"}),
    ("AdamW8bit", {"optim": "paged_adamw_8bit", "extra": EIGHT_BITS}),
    ("AdEMAMix8bit", {"optim": "ademamix_8bit", "extra": EIGHT_BITS}),
    ("Lion8bit", {"optim": "lion_8bit", "extra": EIGHT_BITS, "learning_rate": 1e-3}),
    ("Lion32bit", {"optim": "lion_32bit", "learning_rate": 1e-3}),
    ("AdamW32bit", {"optim": "paged_adamw_32bit", "weight_decay": 0.1}),
    ("RMSprop8bit", {"optim": "rmsprop_bnb_8bit", "extra": EIGHT_BITS, "learning_rate": 1e-3}),
]


def test_every_optimiser_of_a_pack_does_what_it_does_in_a_plain_loop(place: Place) -> None:
    import bitsandbytes  # the machine of the GPU tests lacks it

    settings = [changed({"lora_alpha": 8 + index}, **changes) for index, (_, changes) in enumerate(LIBRARIES)]
    settings[8][0].plus_ratio = settings[10][0].plus_ratio = 4.0
    pack = place.train(settings, "pack")
    for outcome, setting, (kind, _) in zip(pack, settings, LIBRARIES, strict=True):
        made = getattr(bitsandbytes.optim, kind) if isinstance(kind, str) else kind
        assert same(weights(outcome), by_peft(place, *setting, made)), setting[1].optim


@pytest.mark.parametrize("optimizer", ["sgd", "adafactor", "adamw_torch_fused", "muon", "adamw_8bit"])
def test_other_optimisers_beside_a_larger_rank(place: Place, optimizer: str) -> None:
    extra = EIGHT_BITS if optimizer == "adamw_8bit" else {}
    settings = [changed({"r": rank}, optim=optimizer, learning_rate=1e-3, extra=extra) for rank in (4, 8)]
    pack = place.train(settings, "pack")
    expected, _ = trained_alone(place, settings[0])
    for name, value in weights(pack[0]).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)


def test_accumulation_equals_a_larger_batch(place: Place) -> None:
    large = place.train([changed({}, per_device_train_batch_size=8)], "large")
    parts = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    small = place.train([changed({}, **parts), changed({}, learning_rate=1e-3, **parts)], "small")
    for name, value in weights(large[0]).items():
        torch.testing.assert_close(weights(small[0])[name], value, rtol=1e-3, atol=1e-4)
    assert small[0].steps == large[0].steps
    assert small[0].eval_loss == pytest.approx(large[0].eval_loss, rel=1e-4)


def test_checkpointing_changes_only_memory_also_with_dropout(place: Place) -> None:
    settings = [changed({"lora_dropout": 0.2}, gradient_checkpointing=on) for on in (False, True)]
    [plain], [checkpointed] = (place.train([setting], str(index)) for index, setting in enumerate(settings))
    assert same(weights(plain), weights(checkpointed))
    assert not place.base.model.is_activation_checkpointing, "the next trial starts without"


def test_scaling_where_matrices_are_narrow_is_the_same(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.base = dataclasses.replace(place.base, model=copy.deepcopy(place.base.model).double(), dtype=torch.float64)
    wide = place.train(DIFFERENT[:2], "wide")
    monkeypatch.setattr(packing, "_scales_narrow", lambda *_: True)
    narrow = place.train(DIFFERENT[:2], "narrow")
    for one, other in zip(wide, narrow, strict=True):
        for name, value in weights(one).items():
            torch.testing.assert_close(weights(other)[name], value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("narrow", [False, True])
def test_a_bfloat16_base_learns(place: Place, monkeypatch: pytest.MonkeyPatch, narrow: bool) -> None:
    monkeypatch.setattr(packing, "_scales_narrow", lambda *_: narrow)
    place.base = dataclasses.replace(place.base, model=copy.deepcopy(place.base.model).bfloat16(), dtype=torch.bfloat16)
    before = weights_digest(place.base.model)
    settings = [(dataclasses.replace(lora, lora_dropout=0.1), training) for lora, training in DIFFERENT[:2]]
    pack = place.train(settings, "pack")
    assert weights_digest(place.base.model) == before
    assert {value.dtype for value in weights(pack[0]).values()} == {torch.float32}
    losses = [values["train/loss"] for _, values in place.figures("pack", 0) if "train/loss" in values]
    assert sum(losses[-3:]) < sum(losses[:3])


def test_a_base_with_dropout_of_its_own_trains_each_alone(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    place.base = dataclasses.replace(place.base, model=copy.deepcopy(place.base.model))
    place.base.model.config.attention_dropout = 0.1
    with caplog.at_level("INFO"):
        alone = place.train(DIFFERENT[:1], "alone")
    assert "dropout of its own (attention_dropout=0.1): the adapter is trained with PEFT's own layers" in caplog.text
    pack = place.train(DIFFERENT[:2], "pack")
    assert same(weights(pack[0]), weights(alone[0]))
    assert isinstance(pack[1], TrainedAdapter)


@pytest.mark.parametrize("many", [1, 3])
def test_out_of_memory_halves_a_pack(place: Place, caplog: pytest.LogCaptureFixture, many: int) -> None:
    def runs_out(_: Any, arguments: tuple[torch.Tensor]) -> None:
        if len(arguments[0]) > 4:
            raise torch.OutOfMemoryError

    place.base = dataclasses.replace(place.base, model=copy.deepcopy(place.base.model))
    place.base.model.get_input_embeddings().register_forward_pre_hook(runs_out)
    settings = [(lora, dataclasses.replace(training, per_device_eval_batch_size=4)) for lora, training in DIFFERENT]
    pack = place.train(settings[:many], "pack")
    assert len(pack) == many
    assert all(isinstance(outcome, TrainedAdapter) for outcome in pack)
    assert caplog.text.count("Out of memory with a batch of") == many - 1


@pytest.mark.slow
def test_what_does_not_fit_together_is_trained_one_after_the_other(place: Place) -> None:
    settings = [DIFFERENT[0], changed({}, per_device_train_batch_size=2), changed({"use_dora": True}), DIFFERENT[1]]
    together = place.train(settings, "together")
    for index, setting in enumerate(settings):
        assert same(weights(together[index]), trained_alone(place, setting)[0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_pack_on_a_gpu_is_what_each_is_alone(
    tiny_model: Path, tmp_path: Path, examples: Examples, eval_examples: Examples
) -> None:
    place = Place(load_base(ModelConfig(name_or_path=str(tiny_model))), tmp_path, examples, eval_examples)
    assert (place.base.device.type, place.base.dtype) == ("cuda", torch.bfloat16)
    place.train(DIFFERENT[:1], "first")
    torch.cuda.synchronize()
    held, before = torch.cuda.memory_allocated(), weights_digest(place.base.model)
    settings = [(dataclasses.replace(lora, lora_dropout=0.1), training) for lora, training in DIFFERENT]
    pack = place.train([*settings, BROKEN], "pack")
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= held + 2**20, "memory is given back"
    assert weights_digest(place.base.model) == before
    assert isinstance(pack[-1], TrainingError)
    for index, setting in enumerate(settings):
        place.train([setting], f"alone{index}")
        packed, alone = (
            [values["train/loss"] for _, values in place.figures(*who) if "train/loss" in values]
            for who in (("pack", index), (f"alone{index}", 0))
        )
        assert len(packed) == STEPS
        assert packed == pytest.approx(alone, rel=0.05)
        assert all(torch.isfinite(value).all() for value in weights(pack[index]).values())


def test_recorded_passes_train_the_same(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Apart from the last bits, in which longer padding shows."""
    settings = [*DIFFERENT[:2], BROKEN, (dataclasses.replace(LORA, lora_dropout=0.0), TRAINING)]
    usual, recorded = place.train(settings, "usual"), []

    def record(work: Any, *_: Any) -> Any:
        recorded.append(work)
        return work

    monkeypatch.setattr(loop, "recorder", lambda _: record)
    outcomes = place.train(settings, "recorded")
    assert len(recorded) >= 4, "a forward and a backward pass, before and after an adapter has left"
    assert isinstance(outcomes[2], TrainingError)
    for one, other in zip(usual, outcomes, strict=True):
        if isinstance(one, TrainedAdapter):
            expected = weights(one)
            for name, value in weights(other).items():
                torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", [{}, {"use_dora": True}])
@pytest.mark.parametrize("fails", ["forward", "backward"])
def test_passes_that_cannot_be_recorded_are_computed_as_usual(
    place: Place, monkeypatch: pytest.MonkeyPatch, kind: dict[str, Any], fails: str
) -> None:
    settings = [changed(kind)]
    expected, _ = trained_alone(place, settings[0])

    def record(work: Any, *_: Any) -> Any:
        work()
        if work.__name__ == "forward" and fails == "backward":
            # A backward pass that breaks off has set the gradients of some weights.
            work.__self__.hidden.backward(torch.ones_like(work.__self__.hidden), retain_graph=True)
            return work
        raise NotRecordableError

    monkeypatch.setattr(loop, "recorder", lambda _: record)
    [outcome] = place.train(settings, "other")
    for name, value in weights(outcome).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("when", ["train", "validate"])
def test_recordings_give_way_if_memory_runs_out(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, when: str
) -> None:
    expected, _ = trained_alone(place, DIFFERENT[0])
    recorded: list[Any] = []

    def record(work: Any, *_: Any) -> Any:
        recorded.append(work)
        return work

    def runs_out(module: torch.nn.Module, _: Any) -> None:
        if recorded and module.training == (when == "train") and "without recorded" not in caplog.text:
            raise torch.OutOfMemoryError

    monkeypatch.setattr(loop, "recorder", lambda _: record)
    handle = place.base.model.get_input_embeddings().register_forward_pre_hook(runs_out)
    try:
        [outcome] = place.train(DIFFERENT[:1], "other")
    finally:
        handle.remove()
    assert "training goes on without recorded steps" in caplog.text
    assert "with a batch of" not in caplog.text
    for name, value in weights(outcome).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-5)


def test_padding_stays_within_the_context() -> None:
    batch = collate([{"input_ids": [1] * 50, "labels": [1] * 50}])
    assert [padded(batch, window)["input_ids"].shape[1] for window in (None, 64, 60, 50)] == [64, 64, 60, 50]
    assert (padded(batch, None)["labels"][0, 50:] == -100).all()
