"""Composing: every shipped file, the LORA_* variables, and one line for every mistake."""

from __future__ import annotations

import dataclasses
import re
import shutil
from itertools import groupby, zip_longest
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from lorahydra.config.compose import (
    compose,
    config_dir,
    flatten,
    hydra_overrides,
    to_yaml,
)
from lorahydra.config.schema import EvaluationConfig, ExperimentConfig, LoraConfig, SearchConfig, TrainingConfig
from lorahydra.config.showing import password_in_environment, without_password
from lorahydra.errors import ConfigError
from lorahydra.sweep.search_space import read_space

REPOSITORY = Path(__file__).resolve().parents[2]
# Choices that need a value from the user.
NEEDED = {
    "model=local": ["model.name_or_path=some/folder"],
    "data=local": ["data.train_file=my.jsonl"],
    "data=hub": ["data.hub_name=owner/name"],
}
CHOICES = sorted(f"{path.parent.name}={path.stem}" for path in (REPOSITORY / "conf").glob("*/*.yaml"))


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MODEL_NAME", "N_TRIALS", "NUM_EPOCHS", "BATCH_SIZE", "LEARNING_RATE"):
        monkeypatch.delenv(f"LORA_{name}", raising=False)


def make(*overrides: str) -> ExperimentConfig:
    return compose(["output_dir=out", *overrides])


def parsed(override: str) -> object:
    """What Hydra takes for the value of an override that a user typed."""
    [found] = OverridesParser.create().parse_overrides(hydra_overrides([override]))
    return found.value()


def test_the_shipped_configs_are_found() -> None:
    assert config_dir() == REPOSITORY / "conf"
    assert len(CHOICES) >= 15


def together() -> list[list[str]]:
    """All choices, with one of each group in a list."""
    groups = [list(choices) for _, choices in groupby(CHOICES, lambda choice: choice.partition("=")[0])]
    return [[choice for choice in row if choice is not None] for row in zip_longest(*groups)]


@pytest.mark.parametrize("choices", together(), ids=" ".join)
def test_every_shipped_file_composes(choices: list[str]) -> None:
    needed = [override for choice in choices for override in NEEDED.get(choice, [])]
    assert isinstance(make(*choices, *needed), ExperimentConfig)


@pytest.mark.parametrize(
    ("file", "schema"),
    [("training/default", TrainingConfig), ("lora/lora", LoraConfig), ("evaluation/default", EvaluationConfig)],
)
def test_the_files_show_every_key_with_its_meaning(file: str, schema: type) -> None:
    lines = (config_dir() / f"{file}.yaml").read_text("utf-8").splitlines()
    keys = [line.partition(":")[0] for line in lines if line and not line.startswith("#")]
    assert sorted(keys) == sorted(field.name for field in dataclasses.fields(schema))
    unexplained = [line for line in lines if line and "#" not in line]
    assert unexplained in ([], ["judge_weight: 0.6"]), "it is explained with the other weight"


def test_own_defaults_stand_between_the_shipped_ones_and_the_command_line(tmp_path: Path) -> None:
    folder = shutil.copytree(config_dir(), tmp_path / "conf")
    (folder / "local").mkdir(exist_ok=True)
    (folder / "local" / "default.yaml").write_text(
        "# @package _global_\nlora: {r: 4}\nevaluation: {max_new_tokens: 7}\n"
    )
    composed = compose([], folder=folder)
    assert (composed.lora.r, composed.evaluation.max_new_tokens) == (4, 7)
    chosen = compose(["lora.r=5", "experiment=demo"], folder=folder)
    assert (chosen.lora.r, chosen.evaluation.max_new_tokens) == (5, 80)


@pytest.mark.parametrize("choice", NEEDED)
def test_a_choice_that_needs_a_value_says_so(choice: str) -> None:
    with pytest.raises(ConfigError, match="give (a value|one)"):
        make(choice)


def test_the_defaults_are_the_promised_ones() -> None:
    config = make()
    assert config.model.name_or_path == "Qwen/Qwen3-0.6B"
    assert config.training.num_train_epochs == 3
    assert config.training.per_device_train_batch_size == 4
    assert config.training.learning_rate == 1e-4
    assert config.search.first_trial == {"training.learning_rate": 1e-4, "lora.r": config.lora.r}, "the defaults"
    config = dataclasses.replace(config, search=SearchConfig())
    assert config == ExperimentConfig(output_dir="out"), "the YAML and the schema give the same defaults"


def test_the_example_of_the_docstring_composes() -> None:
    assert compose(["experiment=demo", "lora.r=8"]).lora.r == 8


def test_the_demo_is_offline() -> None:
    config = make("experiment=demo")
    assert config.model.name_or_path == "smollm2-135m-instruct"
    assert config.evaluation.bertscore_model == "all-minilm-l6-v2"
    assert config.data.train_file == "demo"


def test_no_experiment_can_be_said_in_words() -> None:
    assert make("experiment=null") == make()


def test_variables_set_their_keys_and_overrides_beat_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "LORA_MODEL_NAME": "some/model",
        "LORA_NUM_EPOCHS": "2",
        "LORA_BATCH_SIZE": "8",
        "LORA_LEARNING_RATE": "3e-4",
    }.items():
        monkeypatch.setenv(name, value)
    config = make()
    assert config.model.name_or_path == "some/model"
    training = config.training
    assert (training.num_train_epochs, training.per_device_train_batch_size, training.learning_rate) == (2, 8, 3e-4)
    assert make("training.learning_rate=0.01").training.learning_rate == 0.01
    assert make("experiment=demo").training.num_train_epochs == 2


@pytest.mark.parametrize("name", ["LORA_NUM_EPOCHS", "LORA_BATCH_SIZE", "LORA_LEARNING_RATE"])
def test_a_variable_of_the_wrong_type_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "many")
    with pytest.raises(ConfigError, match=f"^environment variable {name}='many' is not a"):
        make()


def test_an_overridden_variable_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORA_BATCH_SIZE", "many")
    assert make("training.per_device_train_batch_size=2").training.per_device_train_batch_size == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.learning_rat=1", r"unknown key training.learning_rat \(did you mean learning_rate\?\)"),
        ("+training.foo=1", "unknown key training.foo: training has num_train_epochs"),
        ("foo=1", "unknown key foo: the config has model, lora"),
        ("data.columns.qestion=q", r"unknown key data.columns.qestion \(did you mean question\?\)"),
        ("training.learning_rate=abc", "training.learning_rate=abc is not allowed: give a number"),
        ("training.learning_rate=number", "training.learning_rate=number is not allowed: give a number"),
        ("training.optim=adamw8bit", r"is not allowed \(did you mean adamw_8bit\?\): choose one of adadelta, "),
        ("lora.r=8.5", "lora.r=8.5 is not allowed: give a whole number"),
        ("lora.target_modules=[1,2]", r"lora.target_modules=\[1, 2\] is not allowed: give a text or a list of texts"),
        ("training.pack=many", "training.pack=many is not allowed: give a whole number or auto"),
        ("training.keep=first", "training.keep=first is not allowed: choose one of best, last"),
        ("data.split_version=3", "data.split_version=3 is not allowed: choose one of 1, 2"),
        ("lora=foo", "lora=foo does not exist: choose one of dora, lora, loraplus, pissa, rslora"),
        ("lora=rslra", r"\(did you mean rslora\?\)"),
        ("lora.r=[1", r"cannot read lora.r=\[1: put text with special characters in quotes"),
        ("data.train_file=a,b.jsonl", "cannot read data.train_file=a,b.jsonl: put a text with commas in quotes"),
        ("data.columns={question: вопрос}", "cannot read data.columns=.*in quotes"),
        ("lora.r=0", "lora.r=0 is not allowed"),
        ("=3", "."),
    ],
)
def test_a_mistake_is_one_line(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make(override)
    assert "\n" not in str(caught.value)


def test_paths_with_odd_characters_arrive_whole() -> None:
    odd = "данные, 1 = a'b.jsonl"
    quoted = odd.replace("'", "\\'")
    assert make("data=local", f"data.train_file='{quoted}'").data.train_file == odd


@pytest.mark.parametrize(
    "path",
    ["данные.jsonl", "мои данные (1).jsonl", "a=b.jsonl", "~/x+y@z.jsonl", "C:\\x\\y.jsonl", "it's.jsonl", "тест"],
)
def test_a_path_needs_no_quotes(path: str) -> None:
    assert parsed(f"data.train_file={path}") == path


@pytest.mark.parametrize("name", ["1e5", "007", "1_000", "NaN", "1.50"])
def test_a_name_that_looks_like_a_number_stays_as_it_was_typed(name: str) -> None:
    for key in ("study", "hydra.sweeper.study_name"):
        assert parsed(f"{key}={name}") == name


@pytest.mark.parametrize("name", ["1e5", "true", "none", "тест"])
def test_a_text_arrives_as_it_was_typed(name: str) -> None:
    assert make(f"study={name}").study == name


@pytest.mark.parametrize(
    ("uri", "bare"),
    [
        ("http://me:geheim@host:5000", "http://host:5000"),
        ("'https://geheim@host/mlflow?token=geheim'", "https://host/mlflow"),
        (r"'postgresql://me:gehe\'im,{@host/mlflow'", "postgresql://me@host/mlflow"),
    ],
)
def test_the_password_of_a_tracking_store_goes_through_the_environment(
    uri: str, bare: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hydra, launchers and the workers of a study show overrides to others."""
    monkeypatch.setenv("LORAHYDRA_TRACKING_STORE", "")
    given = hydra_overrides([f"tracking.uri={uri}", "lora.r=8"])
    moved = password_in_environment(given)
    assert compose(moved).tracking == compose(given).tracking
    assert password_in_environment(hydra_overrides(moved)) == moved, "as a worker does"
    assert "geh" not in str(moved)
    assert without_password(moved[0]) == f"tracking.uri={bare.partition(':')[0]}://***", (
        "the variable is not there later"
    )
    monkeypatch.delenv("LORAHYDRA_TRACKING_STORE")
    assert compose(moved).tracking.uri == bare, "it does not reach each machine"


@pytest.mark.parametrize(
    "override",
    ["tracking.uri=http://host:5000", "tracking.uri='http://me:${oc.env:WORD}@host'", "~tracking.uri", "lora.r=8"],
)
def test_an_address_without_a_password_stays(override: str) -> None:
    assert password_in_environment([override]) == [override]


def test_numbers_stay_numbers() -> None:
    numbers = ["lora.r=1_000", "training.learning_rate=1e-05", "study=null", "study=1e5,1e6"]
    assert hydra_overrides(numbers) == numbers


def test_columns_are_mapped_by_name() -> None:
    config = make("data=local", "data.train_file=a", "data.columns={question: q, answer: a}")
    assert config.data.columns.renamed() == {"question": "q", "answer": "a"}


def test_the_config_can_be_written_and_read_again() -> None:
    from omegaconf import OmegaConf

    from lorahydra.config.compose import to_config

    config = make("experiment=demo", "lora=pissa", "lora.target_modules=[q_proj,v_proj]")
    assert to_config(OmegaConf.create(to_yaml(config))) == config
    assert flatten(config)["lora.target_modules"] == ["q_proj", "v_proj"]
    assert flatten(config)["training.learning_rate"] == 5e-4


@pytest.mark.parametrize("choice", ["lora", "small", "full", "demo", "none"])
def test_the_shipped_spaces_can_be_searched_and_hold_their_first_trial(choice: str) -> None:
    search = make(f"search={choice}").search
    space = read_space([], search.space, search.first_trial, add_shipped=False)
    assert set(space.distributions) == set(search.space)
    assert set(space.first_trial) == set(search.space)
    tried = [f"{key}={value}" for key, value in space.first_trial.items()]
    assert make(*tried)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["objective=speed"], "objective=speed is not allowed: choose one of"),
        (["objective=[]"], "give one or a list of"),
        (["objective=[time,time]"], "name each objective once"),
        (["objective=judge_score"], "objective=judge_score needs a judge"),
        (["study=../elsewhere"], "study=../elsewhere is not allowed"),
        (["study=.hidden"], "study=.hidden is not allowed"),
    ],
)
def test_an_impossible_study_is_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        make(*overrides)


def test_dictionaries_of_a_librarys_settings_take_any_key() -> None:
    config = compose(["lora=loraplus", "lora.extra={exclude_modules: [down_proj]}", "training.extra.betas=[0.9,0.95]"])
    assert (config.lora.plus_ratio, config.lora.extra) == (16, {"exclude_modules": ["down_proj"]})
    assert flatten(config)["training.extra.betas"] == [0.9, 0.95]
