"""Which settings of earlier studies a new study begins with."""

from __future__ import annotations

import logging
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState, create_trial

from lorahydra.config.compose import compose
from lorahydra.errors import ConfigError
from lorahydra.sweep.dead_trials import FIXED
from lorahydra.sweep.study_spec import BASE_CONTENT, DATA_CONTENT, experiment_spec
from lorahydra.sweep.study_store import RESULT, SPEC
from lorahydra.sweep.warm_start import DATA_KIND, WARM, DataKind, begin_warm

Params = dict[str, Any]

RATE, RANK = "training.learning_rate", "lora.r"
SPACE = {RATE: FloatDistribution(2e-5, 2e-3, log=True), RANK: CategoricalDistribution([8, 16, 32, 64])}
FIRST = {RATE: 1e-4, RANK: 16}
KIND = DataKind("prompt/completion", 80.0, 400)
SIMILAR = {"format": "prompt/completion", "tokens": 120.0, "rows": 1000}


BEFORE = experiment_spec(compose([]), {}, ["combined"], SPACE) | {DATA_CONTENT: "aaa bbb ccc", BASE_CONTENT: "base 1"}
"""What a study of the same data was begun with."""
OTHER_DATA = BEFORE | {DATA_CONTENT: "ddd eee fff"}


@pytest.fixture
def storage() -> InMemoryStorage:
    return InMemoryStorage()


def ended(
    storage: InMemoryStorage,
    name: str,
    params: dict[str, Any],
    *,
    before: Any = None,
    kind: Any = None,
    result: Any = 0,
) -> None:
    """An earlier study, with one trial."""
    study = optuna.create_study(storage=storage, study_name=name, direction="maximize")
    ranges = {RATE: FloatDistribution(1e-7, 1, log=True), RANK: IntDistribution(1, 4096)}
    distributions = {key: ranges.get(key, CategoricalDistribution([value])) for key, value in params.items()}
    study.add_trial(create_trial(value=0.8, params=params, distributions=distributions))
    study.set_user_attr(SPEC, BEFORE if before is None else before)
    study.set_user_attr(DATA_KIND, kind)
    study.set_user_attr(RESULT, {"best": result})


def begun(
    storage: InMemoryStorage, now: Any = None, most: int = 19, kind: DataKind | None = KIND
) -> list[dict[str, Any]]:
    """The settings that a new study waits to run after trial 0."""
    study = optuna.create_study(storage=storage, direction="maximize")
    study.enqueue_trial(FIRST)
    begin_warm(study, BEFORE if now is None else now, kind, SPACE, most)
    assert len(study.user_attrs[WARM]) == len(study.trials) - 1
    return [trial.system_attrs[FIXED] for trial in study.trials[1:]]


def test_winners_of_two_studies_of_the_same_data_come_before_those_of_similar_data(
    storage: InMemoryStorage, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    ended(storage, "old", {RATE: 3e-4, RANK: 64})
    other = OTHER_DATA
    ended(storage, "similar", {RATE: 9e-4, RANK: 8}, before=other, kind=SIMILAR)
    assert begun(storage) == [{RATE: 3e-4, RANK: 64}, {RATE: 9e-4, RANK: 8}]
    ended(storage, "new\nname", {RATE: 6e-4, RANK: 32})
    assert begun(storage) == [{RATE: 6e-4, RANK: 32}, {RATE: 3e-4, RANK: 64}]
    assert "trial 1 has the settings of the winner of study new name, trial 0 (same data)" in caplog.text
    assert "trial 2 has the settings of the winner of study similar, trial 0 (similar data)" in caplog.text
    assert len(begun(storage, most=1)) == 1


def test_settings_are_not_tried_twice(storage: InMemoryStorage) -> None:
    ended(storage, "first", {RATE: 1.05e-4, RANK: 16})
    ended(storage, "one", {RATE: 5e-4, RANK: 16})
    ended(storage, "nearly one", {RATE: 5.5e-4, RANK: 16})
    assert begun(storage) == [{RATE: 5.5e-4, RANK: 16}]


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({RATE: 0.5, RANK: 16}, [{RATE: 2e-3, RANK: 16}]),
        ({RATE: 1e-6, RANK: 16}, [{RATE: 2e-5, RANK: 16}]),
        ({RATE: 5e-4, RANK: 12}, []),
        ({RATE: 5e-4}, [{RATE: 5e-4, RANK: 16}]),  # the rank was not searched
        ({RATE: 5e-4, RANK: 16, "lora.lora_dropout": 0.1}, [{RATE: 5e-4, RANK: 16}]),
        ({RATE: 5e-4, RANK: 16, "lora.lora_alpha": 64}, []),  # makes other rates good
        ({RATE: 5e-4, RANK: 16, "lora.lora_alpha": 32.0}, [{RATE: 5e-4, RANK: 16}]),
        ({RATE: 5e-4, RANK: 16, "lora.use_rslora": False}, [{RATE: 5e-4, RANK: 16}]),  # which search=full searches
        ({RATE: 5e-4, RANK: 16, "lora.use_rslora": True}, []),
        ({RATE: 5e-4, RANK: 16, "data.max_length": 99}, []),
        ({RATE: 5e-4, RANK: 16, "lora.extra.layers_to_transform": 1}, []),
        ({RATE: 5e-4, RANK: 16, "lora.target_modules": "${oc.env:HOME}"}, []),
    ],
)
def test_settings_fit_the_space_and_what_is_fixed(
    storage: InMemoryStorage, params: Params, expected: list[Any]
) -> None:
    ended(storage, "old", params)
    assert begun(storage) == expected


@pytest.mark.parametrize(
    "before",
    [
        BEFORE | {BASE_CONTENT: "base 2"},
        BEFORE | {"objective": "bertscore_f1"},
        OTHER_DATA,  # and nothing is known of the kind of data
        BEFORE | {"training.optim": "lion_8bit"},
        BEFORE | {"training.per_device_train_batch_size": "8"},
        BEFORE | {"lora.use_rslora": "True"},
        {name: text for name, text in BEFORE.items() if name != "training.extra"}
        | {"training.extra.betas": "[0.9, 0.95]"},
        {},
        "nonsense",
        {"objective": "combined", "model.name_or_path": 7},
    ],
)
def test_other_studies_are_no_help(storage: InMemoryStorage, before: Any) -> None:
    ended(storage, "other", {RATE: 5e-4, RANK: 32}, before=before)
    assert begun(storage) == []


@pytest.mark.parametrize("result", [7, "x", None, -1, []])
def test_a_result_that_cannot_be_read_is_no_help(storage: InMemoryStorage, result: Any) -> None:
    ended(storage, "broken", {RATE: 5e-4, RANK: 32}, result=result)
    ended(storage, "good", {RATE: 7e-4, RANK: 32})
    ended(storage, "broken as well", {RATE: 5e-4, RANK: 32}, result=result)
    assert begun(storage) == [{RATE: 7e-4, RANK: 32}]


@pytest.mark.parametrize(
    "kind",
    [None, "x", {**SIMILAR, "format": "messages"}, {**SIMILAR, "tokens": 161.0}, {**SIMILAR, "rows": 99}, {"rows": []}],
)
def test_data_of_another_kind(storage: InMemoryStorage, kind: Any) -> None:
    ended(storage, "other", {RATE: 5e-4, RANK: 32}, before=OTHER_DATA, kind=kind)
    assert begun(storage) == []
    assert begun(storage, kind=None) == []


def test_a_study_without_digests_of_its_model_is_known_by_its_name(storage: InMemoryStorage) -> None:
    ended(storage, "old", {RATE: 5e-4, RANK: 32}, before=BEFORE | {BASE_CONTENT: "None"})
    assert len(begun(storage)) == 1
    assert begun(storage, BEFORE | {"model.name_or_path": "other"}) == []


def test_a_study_with_further_arguments_of_the_optimiser_has_other_good_rates(storage: InMemoryStorage) -> None:
    ended(storage, "old", {RATE: 5e-4, RANK: 32})
    assert begun(storage, BEFORE | {"training.extra.betas": "[0.9, 0.95]"}) == []


def test_a_study_that_has_begun_keeps_what_it_has(storage: InMemoryStorage) -> None:
    ended(storage, "old", {RATE: 5e-4, RANK: 32})
    study = optuna.create_study(storage=storage, direction="maximize")
    study.enqueue_trial(FIRST)
    for _ in range(2):
        begin_warm(study, BEFORE, KIND, SPACE, 9)
        assert len(study.trials) == 2
    before = optuna.create_study(storage=storage, direction="maximize")
    before.ask()
    begin_warm(before, BEFORE, KIND, SPACE, 9)
    assert [trial.state for trial in before.trials] == [TrialState.RUNNING]
    assert WARM not in before.user_attrs


@pytest.mark.parametrize("queued", [1, 2])
def test_a_process_that_dies_while_it_queues_settings_leaves_the_rest_to_the_next_one(
    storage: InMemoryStorage, monkeypatch: pytest.MonkeyPatch, queued: int
) -> None:
    for number in range(3):
        ended(storage, f"old {number}", {RATE: 5e-4 * 2**-number, RANK: 32})
    study = optuna.create_study(storage=storage, direction="maximize")
    study.enqueue_trial(FIRST)
    enqueue = study.enqueue_trial

    def dying(params: Params) -> None:
        if len(study.trials) == queued:
            raise KeyboardInterrupt
        enqueue(params)

    monkeypatch.setattr(study, "enqueue_trial", dying)
    with pytest.raises(KeyboardInterrupt):
        begin_warm(study, BEFORE, KIND, SPACE, 9)
    monkeypatch.undo()
    ended(storage, "newer", {RATE: 2e-3, RANK: 8})
    for _ in range(2):
        begin_warm(study, BEFORE, KIND, SPACE, 9)
        begun_with = [trial.system_attrs[FIXED] for trial in study.trials]
        assert begun_with == [FIRST, {RATE: 1.25e-4, RANK: 32}, {RATE: 2.5e-4, RANK: 32}]


def test_the_key() -> None:
    assert compose([]).search.warm_start == "off"
    assert compose(["search.warm_start=off"]).search.warm_start == "off"
    assert compose(["search.warm_start=false"]).search.warm_start == "off"
    assert compose(["search.warm_start=auto"]).search.warm_start == "auto"
    with pytest.raises(ConfigError, match=r"search\.warm_start=always is not allowed"):
        compose(["search.warm_start=always"])
