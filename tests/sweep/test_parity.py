"""Examples of Hydra's Optuna sweeper give the same under `hydra/sweeper=lorahydra`, and what it cannot do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.programs import ProgramRunner
from tests.sweep.conftest import Program, installed, make_program, states

from lorahydra.names import State

pytestmark = pytest.mark.slow

SPHERE = {"x": "interval(-5.5, 5.5)", "y": "choice(-5, 0, 5)"}
RANGES = {"x": "range(-5.5, 5.5, step=0.5)", "y": "choice(-5, 0, 5)"}
BINH_AND_KORN = {"x": "range(0, 5, step=0.5)", "y": "range(0, 3, step=0.5)"}
BOTH = ["hydra.sweeper.direction=[minimize,minimize]"]
CUSTOM = ["hydra.sweeper.custom_search_space=app.configure"]


def sampler(name: str, *overrides: str, seed: int | None = 123) -> list[str]:
    seeded = [] if seed is None else [f"hydra.sweeper.sampler.seed={seed}"]
    return [f"hydra/sweeper/sampler={name}", *seeded, *overrides]


TPE = sampler("tpe", "hydra.sweeper.sampler.n_startup_trials=3")
"""So that half of six trials are drawn by the model of the sampler."""
CASES: dict[str, tuple[str, dict[str, str], int, list[str]]] = {
    "sphere-tpe": ("sphere", SPHERE, 7, TPE),
    "sphere-batches-of-2": ("sphere", SPHERE, 7, [*TPE, "hydra.sweeper.n_jobs=2"]),
    "sphere-joblib": ("sphere", SPHERE, 4, [*sampler("tpe"), "hydra.sweeper.n_jobs=2", "hydra/launcher=joblib"]),
    "sphere-grid": ("sphere", RANGES, 6, sampler("grid", seed=None)),
    "sphere-whole-grid": ("sphere", {"x": "choice(1, 2)", "y": "range(0, 3)"}, 20, sampler("grid")),
    "sphere-cmaes": ("sphere", SPHERE | {"y": "interval(0, 1)"}, 8, sampler("cmaes", "hydra.sweeper.n_jobs=2")),
    "sphere-gp": ("sphere", SPHERE, 6, sampler("gp", "hydra.sweeper.sampler.n_startup_trials=3")),
    "sphere-qmc-maximize": ("sphere", SPHERE, 5, [*sampler("qmc"), "hydra.sweeper.direction=maximize"]),
    "fixed": ("sphere", SPHERE, 5, [*TPE, "y=3"]),
    "booth": ("booth", {"x": "interval(-10, 10)", "y": "tag(log, interval(1, 10))"}, 6, TPE),
    "binh-and-korn-nsgaii": (
        "binh_and_korn",
        BINH_AND_KORN,
        9,
        [*sampler("nsgaii", "hydra.sweeper.sampler.population_size=4"), *BOTH],
    ),
    "binh-and-korn-tpe": ("binh_and_korn", BINH_AND_KORN, 7, [*TPE, *BOTH]),
    "custom": ("sphere", {"x": "range(-5.5, 5.5, step=0.5)", "y": "choice(-5, 0, 5)"}, 6, [*TPE, *CUSTOM]),
}


@pytest.mark.parametrize("case", CASES)
def test_the_same_as_hydras_optuna_sweeper(case: str, tmp_path: Path, runner: ProgramRunner) -> None:
    function, space, n_trials, extra = CASES[case]
    if "cmaes" in case and not installed("cmaes"):
        pytest.skip("CMA-ES needs the package cmaes")
    # A study in memory differs in nothing but its storage.
    names = ("upstream", "stored", "memory") if case == "sphere-batches-of-2" else ("upstream", "stored")
    upstream, *ours = programs = [make_program(tmp_path / name, runner) for name in names]
    started = []
    for program in programs:
        values = "w: 0\nx: 1\ny: 1\nz: 1\n" if case == "custom" else "x: 1\ny: 1\n"
        program.configure(yaml.safe_dump({"hydra": {"sweeper": {"params": space}}}) + values)
        url = program.url if program is ours[0] else "null"
        common = [
            f"hydra.sweeper.storage={url}",
            f"hydra.sweeper.n_trials={n_trials}",
            "hydra.sweeper.n_jobs=1",
            *extra,
        ]
        overrides = ["-m", "hydra.sweep.dir=results", "hydra.sweeper.study_name=s", "hydra.output_subdir=null", *common]
        choice = ["hydra/sweeper=lorahydra", "hydra/sweeper/pruner=none"]
        if program is upstream:
            choice = ["hydra/sweeper=optuna"]
        started.append(program.begin(*choice, *overrides, FUNCTION=function))
    assert {running.wait() for running in started} == {0}, ours[0].output

    def calls(program: Program) -> list[Any]:
        # Jobs of one joblib batch run at once, in any order.
        return sorted(map(str, program.calls)) if "joblib" in case else program.calls

    assert len(upstream.calls) == 2 * min(n_trials, 6 if case == "sphere-whole-grid" else n_trials)
    for program in ours:
        assert calls(program) == calls(upstream)
    results = [program.file.with_name("results") / "optimization_results.yaml" for program in programs]
    assert len({file.read_text() for file in results}) == 1, results[1].read_text()


def test_the_study_in_the_database_is_that_of_hydras_optuna_sweeper(tmp_path: Path, runner: ProgramRunner) -> None:
    kept = []
    for choice in (["hydra/sweeper=optuna"], ["hydra/sweeper=lorahydra", "hydra/sweeper/pruner=none"]):
        program = make_program(tmp_path / choice[0].rpartition("=")[2], runner)
        overrides = [*program.overrides("x=interval(-5.5, 5.5)", "y=choice(-5, 0, 5)", "z=3")]
        overrides = [o for o in overrides if not o.startswith(("hydra/sweeper",))]
        program.configure("x: 1\ny: 1\nz: 1\n")
        settings = ["hydra.sweeper.n_trials=5", "hydra.sweeper.n_jobs=1", *sampler("tpe")]
        assert program.begin(*choice, *overrides, *settings).wait() == 0, program.output
        trials = program.trials()
        kept.append([(t.number, t.state, t.params, t.distributions, t.values, t.user_attrs.get("z")) for t in trials])
    assert kept[0] == kept[1]
    assert len(kept[0]) == 5


def test_a_pruned_function(program: Program) -> None:
    script = dict.fromkeys(range(1, 6), "measure") | dict.fromkeys(range(6, 9), "prune")
    overrides = ["x=interval(-5.5, 5.5)", "hydra/sweeper/pruner=median", "hydra.sweeper.n_trials=8"]
    assert program.sweep(*overrides, *sampler("random"), script=script) == 0, program.output
    assert states(program.records()) == [State.COMPLETE] * 5 + [State.PRUNED] * 3
    pruned = program.records()[5]
    assert len(pruned.losses) == 1
    assert pruned.losses[1] > 100


def test_losses_are_pruned_the_same_way_in_a_study_that_maximizes(program: Program) -> None:
    script = {**dict.fromkeys(range(1, 6), "measure"), 6: "prune"}
    overrides = ["hydra.sweeper.direction=maximize", "hydra/sweeper/pruner=median", "hydra.sweeper.n_trials=6"]
    assert program.sweep("x=interval(-5.5, 5.5)", *overrides, *sampler("random"), script=script) == 0, program.output
    records = program.records()
    assert states(records) == [State.COMPLETE] * 5 + [State.PRUNED]
    assert records[5].losses[1] > 100


def test_failures_within_the_allowed_share(program: Program) -> None:
    script = {1: "raise", 3: "nan", 4: "memory", 5: "nothing"}
    overrides = ["x=interval(-5.5, 5.5)", "hydra.sweeper.n_trials=8", "hydra.sweeper.max_failure_rate=0.5"]
    assert program.sweep(*overrides, *sampler("tpe"), script=script) == 0, program.output
    records = program.records()
    failed, complete = State.FAILED, State.COMPLETE
    assert states(records) == [failed, complete, failed, failed, failed, complete, complete, complete]
    assert [record.failure for record in records if record.failure] == [
        "ValueError: this one fails",
        "nan: the trial's result is not a number",
        "MemoryError: none left",
        "Return value must be float-castable. Got 'None'.",
    ]
    assert "Trial 3 failed: MemoryError: none left" in program.output
    assert program.file.with_name("results").joinpath("optimization_results.yaml").exists()


def test_too_many_failures(program: Program) -> None:
    overrides = ["x=interval(-5.5, 5.5)", "hydra.sweeper.n_trials=8", "hydra.sweeper.max_failure_rate=0.25"]
    assert program.sweep(*overrides, script=dict.fromkeys(range(1, 9), "raise")) != 0
    assert states(program.records()) == [State.FAILED] * 3
    assert "3 of 8 trials of study s failed" in program.output
    assert "the last one: ValueError: this one fails" in program.output


def test_results_that_cannot_be_used_do_not_end_a_study_as_errors_do(program: Program) -> None:
    overrides = ["x=interval(-5.5, 5.5)", "hydra.sweeper.n_trials=3", "hydra.sweeper.max_failure_rate=0"]
    assert program.sweep(*overrides, script={1: "nan"}) == 0, program.output
    assert states(program.records()) == [State.FAILED, State.COMPLETE, State.COMPLETE]


def test_a_study_without_a_result_that_can_be_used_fails(program: Program) -> None:
    overrides = ["x=interval(-5.5, 5.5)", "hydra.sweeper.n_trials=2"]
    assert program.sweep(*overrides, script={1: "nan", 2: "nothing"}) != 0
    assert "no trial of the study has a result that can be used" in program.output


def test_a_wrong_number_of_values(program: Program) -> None:
    overrides = ["x=interval(-5.5, 5.5)", "hydra.sweeper.n_trials=2", "hydra.sweeper.max_failure_rate=1"]
    directions = "hydra.sweeper.direction=[minimize,minimize,minimize]"
    assert program.sweep(*overrides, directions, FUNCTION="binh_and_korn") == 0, program.output
    assert {record.failure for record in program.records()} == {
        "the trial returned 2 values, and there are 3 objectives"
    }


@pytest.mark.parametrize("wrong", ["n_trials=0", "n_jobs=0", "max_failure_rate=1.5"])
def test_a_number_out_of_range(program: Program, wrong: str) -> None:
    assert program.sweep("x=interval(0,1)", f"hydra.sweeper.{wrong}") != 0
    assert f"hydra.sweeper.{wrong} is not allowed" in program.output
    assert not program.calls
