"""Every sampler and pruner with every shipped search space: it runs, or one line says what it needs."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf
from tests.support.configs import composed
from tests.sweep.conftest import installed

from hydra_plugins.lorahydra_sweeper import config as plugin
from lorahydra.config.compose import config_dir
from lorahydra.errors import ConfigError, TrialPruned
from lorahydra.sweep.running_trial import RunningTrial
from lorahydra.sweep.samplers import make_sampler
from lorahydra.sweep.study_sweeper import StudySweeper

GROUP = "hydra/sweeper"
SAMPLERS = sorted(name.removesuffix(".yaml") for name in ConfigStore.instance().list(f"{GROUP}/sampler"))
PRUNERS = sorted(name.removesuffix(".yaml") for name in ConfigStore.instance().list(f"{GROUP}/pruner"))
SPACES = sorted(file.stem for file in (config_dir() / "search").glob("*.yaml"))
OWN = {
    "training.learning_rate": "tag(log, interval(1e-5, 1e-3))",
    "lora.r": "range(4, 9)",
    "lora.lora_dropout": "0,0.1",
}
"""What is searched beside `search=none`."""
N_TRIALS = 4


def choice(group: str, name: str, *overrides: str) -> DictConfig:
    node = OmegaConf.create(OmegaConf.to_container(ConfigStore.instance().load(f"{GROUP}/{group}/{name}.yaml").node))
    assert isinstance(node, DictConfig)
    # The sampler's own model is reached within the few trials here.
    for key, value in {"n_startup_trials": N_TRIALS - 1, "population_size": 3}.items():
        if group == "sampler" and key in node:
            node[key] = value
    node.merge_with_dotlist(list(overrides))
    return node


@functools.cache
def settings_of(space: str) -> dict[str, str]:
    return dict(composed(f"search={space}").search.space) or OWN


class Sweeper(StudySweeper):
    """Runs a function here, without composing a config for each trial."""

    seen: list[RunningTrial]

    def _launched(self, claimed: list[RunningTrial], overrides: Sequence[Sequence[str]]) -> Iterator[Any]:
        for trial in claimed:
            self.seen.append(trial)
            job = JobReturn(status=JobStatus.COMPLETED)
            job.return_value = [1.0 / (1 + trial.number)] * len(self.objective.directions)
            try:
                for step in range(3):
                    trial.measured(1.0 + trial.number / (1 + step))
            except TrialPruned as error:
                job = JobReturn(status=JobStatus.FAILED)
                job.return_value = error
            if len(self.objective.directions) == 1 and job.status is JobStatus.COMPLETED:
                job.return_value = job.return_value[0]
            yield trial, job


def sweep(sampler: DictConfig, pruner: DictConfig, space: dict[str, str], folder: Path, **changed: Any) -> Sweeper:
    keys: dict[str, Any] = {"direction": "minimize", "n_trials": N_TRIALS, "n_jobs": 1, "max_failure_rate": 0.0}
    keys |= {"storage": None, "study_name": "s", "custom_search_space": None, "params": None} | changed
    keys |= {"sampler": sampler, "pruner": pruner}
    config = OmegaConf.create({"seed": 1, "hydra": {"sweep": {"dir": str(folder)}, "job": {"name": "test"}}})
    hydra: Any = SimpleNamespace(config_loader=None)
    sweeper = Sweeper(keys, hydra_context=hydra, task_function=lambda _: None, config=config)
    sweeper.seen = []
    sweeper.sweep([f"{name}={values}" for name, values in space.items()])
    return sweeper


def test_conf_shows_every_key_and_every_choice() -> None:
    conf = config_dir() / "hydra"
    shown = (conf / "sweeper" / "lorahydra.yaml").read_text("utf-8")
    keys = OmegaConf.create(shown)
    assert isinstance(keys, DictConfig)
    node = OmegaConf.structured(plugin.LorahydraSweeperConf)
    assert set(keys) - {"defaults"} == set(node) - {"_target_", "defaults", "sampler", "pruner"}
    for key in set(keys) - {"defaults"}:
        assert OmegaConf.to_container(keys)[key] == OmegaConf.to_container(node)[key], key  # type: ignore[call-overload,index]
    described = (conf / "help" / "lorahydra.yaml").read_text("utf-8")
    for text in (shown, described):
        for group, choices in (("sampler", set(SAMPLERS) - {"motpe"}), ("pruner", set(PRUNERS) - {"wilcoxon"})):
            [listed] = re.findall(rf"{group}(?:: |=NAME).*(?:\n {{20}}.*)*", text)
            assert choices <= set(re.findall(r"\w+", listed)), (group, listed)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_pruners_and_search_spaces_go_together(sampler: str, tmp_path: Path) -> None:
    if sampler == "motpe":
        with pytest.raises(ConfigError, match="sampler: raise_motpe_removed cannot be used: .*sampler=tpe"):
            sweep(choice("sampler", sampler), choice("pruner", "none"), OWN, tmp_path)
        return
    if sampler == "cmaes" and not installed("cmaes"):
        pytest.skip("CMA-ES needs the package cmaes")
    for space in SPACES:
        for pruner in PRUNERS:
            swept = sweep(choice("sampler", sampler), choice("pruner", pruner), settings_of(space), tmp_path)
            assert len(swept.seen) == N_TRIALS, (space, pruner)
            assert all(set(trial.params) == set(settings_of(space)) for trial in swept.seen)


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name not in ("motpe", "cmaes")])
def test_samplers_with_two_objectives(sampler: str, tmp_path: Path) -> None:
    directions = OmegaConf.create(["maximize", "minimize"])
    swept = sweep(choice("sampler", sampler), choice("pruner", "median"), OWN, tmp_path, direction=directions)
    assert len(swept.seen) == N_TRIALS


def test_a_grid_divides_ranges(tmp_path: Path) -> None:
    space = {"x": "interval(0.0, 1.0)", "y": "tag(log, interval(1e-4, 1e-2))"}
    swept = sweep(choice("sampler", "grid"), choice("pruner", "none"), space, tmp_path, n_trials=99, grid_steps=3)
    assert sorted((trial.params["x"], trial.params["y"]) for trial in swept.seen) == [
        (x, y) for x in (0.0, 0.5, 1.0) for y in (1e-4, 1e-3, 1e-2)
    ]


def test_a_grid_that_is_too_large_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the grid has 1000000 settings, more than the 100000 allowed"):
        sweep(choice("sampler", "grid"), choice("pruner", "none"), {"x": "range(1000000)"}, tmp_path)


@pytest.mark.parametrize(
    ("kind", "name", "wrong", "said"),
    [
        ("sampler", "nsgaii", "population_size=1", "population_size"),
        ("sampler", "qmc", "qmc_type=hopton", "qmc_type"),
        ("sampler", "auto", "seed=-1", "seed=-1 is not allowed"),
        ("sampler", "auto", "n_startup_trials=-1", "n_startup_trials=-1 is not allowed"),
        ("pruner", "percentile", "percentile=200", "Percentile"),
        ("pruner", "hyperband", "bootstrap_count=2", "bootstrap_count"),
    ],
)
def test_a_setting_that_is_not_possible_is_one_line(
    kind: str, name: str, wrong: str, said: str, tmp_path: Path
) -> None:
    chosen = {"sampler": choice("sampler", "tpe"), "pruner": choice("pruner", "none")}
    chosen[kind] = choice(kind, name, wrong)
    with pytest.raises(ConfigError, match=f"hydra/sweeper/{kind}: .* cannot be used: ") as raised:
        sweep(chosen["sampler"], chosen["pruner"], OWN, tmp_path)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def extend(_: DictConfig, trial: optuna.Trial) -> None:
    trial.suggest_float("own", 0, 1)


@pytest.mark.filterwarnings("ignore:hydra.utils.instantiate")  # of a function that no whitelist of Hydra names
def test_a_space_that_a_function_extends_is_searched_with_the_seed_of_the_sampler(tmp_path: Path) -> None:
    def drawn(seed: int, at_random: int) -> list[Any]:
        auto = choice("sampler", "auto", f"seed={seed}", f"n_startup_trials={at_random}")
        none = choice("pruner", "none")
        swept = sweep(auto, none, OWN, tmp_path, custom_search_space=f"{__name__}.extend", n_trials=3)
        return [trial.params for trial in swept.seen]

    assert drawn(7, 1) == drawn(7, 1) != drawn(8, 1)
    assert drawn(7, 1)[0] == drawn(7, 3)[0]
    assert drawn(7, 1) != drawn(7, 3)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ImportError("Tried to import 'cmaes'") from ModuleNotFoundError("No module named 'cmaes'", name="cmaes")

    monkeypatch.setattr(optuna.samplers.CmaEsSampler, "__init__", missing)
    with pytest.raises(ConfigError, match="CmaEsSampler cannot be used: it needs a package: pip install cmaes"):
        make_sampler(choice("sampler", "cmaes"), OmegaConf.create({}))


def test_wilcoxon_ends_no_trial_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pruner = sweep(choice("sampler", "random"), choice("pruner", "wilcoxon"), OWN, tmp_path).settings.pruner
    assert type(pruner) is optuna.pruners.NopPruner
    assert "hydra/sweeper/pruner=wilcoxon ends no trial" in caplog.text
