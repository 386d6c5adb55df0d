"""Replays studies on recorded grids of trials: which way of searching, pruning and choosing finds the best adapter?

    python benchmarks/replay.py benchmarks/surfaces/*.parquet
    python benchmarks/replay.py --simulated --strategies today random tpe gp --repetitions 50
    python benchmarks/replay.py --simulated --judge-noise 15

Spaces and samplers are those that ship (`conf/search`, `hydra/sweeper/sampler`) unless a strategy says otherwise, and
trials are told to Optuna as a study tells them. Each repetition draws another sample of validation rows, other adapters
(`surfaces/surface.py`) and another seed of the sampler.

`regret` is how much better the best cell of the grid is, on average over seeds, than the setting of the trial that is
chosen after so many trials; `trials` after how many trials the choice was within 0.005 of the best cell for the first
time (median; `-` if most studies never were). `winner` is the share of studies that chose the trial that was best
on all rows, `covered` the share in which no trial was better than the chosen one by more than the stated bound;
`P(best)` the mean of what was stated, and its calibration error. ± are 95 % intervals over the repetitions.
"""

from __future__ import annotations

import argparse
import functools
import logging
import math
import multiprocessing
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from optuna.distributions import BaseDistribution
from optuna.trial import TrialState

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.surfaces.surface import Drawn, Floats, Surface, load, simulated
from lorahydra.evaluation.choosing import compare

from lorahydra.config.compose import compose
from lorahydra.evaluation.judging import choose
from lorahydra.sweep.compat import quietly, suggest
from lorahydra.sweep.samplers import make_pruner, make_sampler
from lorahydra.sweep.search_space import read_space

BUDGETS = (5, 10, 20, 30)
NEAR = 0.005
"""A regret that does not matter, in units of the score."""
RATE, RANK, ALPHA, DOUBLINGS = "training.learning_rate", "lora.r", "lora.lora_alpha", "lora.r_doublings"
RATES = "tag(log, interval(2e-5, 1e-3))"
ORDERED = {RATE: RATES, DOUBLINGS: "range(3, 7)"}
"""Rate and rank, the rank as 2 to the power of an integer, so that a sampler knows the order."""
FIRST = {RATE: 2e-4, DOUBLINGS: 4}


@dataclass(frozen=True)
class Strategy:
    """A way of searching."""

    sampler: str
    """Name in `hydra/sweeper/sampler`."""
    search: str = ""
    """Name in `conf/search`, whose space and first trial are used."""
    space: Mapping[str, str] = field(default_factory=dict)
    """The space, if it is not one of those."""
    first: Sequence[Mapping[str, Any]] = ()
    """Parameters of the first trials."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the sampler other than those that ship."""


def spread(count: int, low: float = 2e-5, high: float = 1e-3) -> list[dict[str, Any]]:
    """Start-up trials spread over the rates: the good one, then van der Corput's sequence, with ranks in turn."""
    shares = [sum((n >> bit & 1) / 2 ** (bit + 1) for bit in range(8)) for n in range(1, count)]
    others = [low * (high / low) ** share for share in shares]
    return [FIRST, *({RATE: rate, DOUBLINGS: (5, 3, 6, 4)[n % 4]} for n, rate in enumerate(others))]


STRATEGIES = {
    "today": Strategy("multivariate_tpe", "lora"),
    "today small": Strategy("multivariate_tpe", "small"),
    "random": Strategy("random", space=ORDERED),
    "random today": Strategy("random", "lora"),
    "tpe": Strategy("tpe", space=ORDERED, first=[FIRST]),
    "multivariate_tpe": Strategy("multivariate_tpe", space=ORDERED, first=[FIRST]),
    "qmc": Strategy("qmc", space=ORDERED, first=[FIRST], settings={"scramble": True}),
    "cmaes": Strategy("cmaes", space=ORDERED, first=[FIRST]),
    "gp": Strategy("gp", space=ORDERED, first=[FIRST]),
    "gp 4": Strategy("gp", space=ORDERED, first=[FIRST], settings={"n_startup_trials": 4}),
    "gp spread": Strategy("gp", space=ORDERED, first=spread(5), settings={"n_startup_trials": 5}),
    "tpe spread": Strategy("multivariate_tpe", space=ORDERED, first=spread(5), settings={"n_startup_trials": 5}),
    "gp rate": Strategy("gp", space={RATE: RATES}, first=[{RATE: 2e-4}], settings={"n_startup_trials": 4}),
}


@dataclass(frozen=True)
class Replayed:
    """The trials of one study that ended with a score, in their order."""

    numbers: list[int]
    trials: list[Drawn]
    scores: Floats
    """On the validation rows, shape (trials, rows)."""
    verdicts: Floats
    """What a judge says of each answer, 0…100, same shape; a study has only some of them."""
    told: list[float]
    """The score of each trial in the study."""
    pruned: list[Drawn]


@dataclass(frozen=True)
class Judge:
    """A judge by formula: a verdict is the quality of an answer, 100 times its score, plus normal noise, cut to 0…100.

    No surface of a real judge can be made offline.
    """

    noise: float
    """Standard deviation in points."""
    examples: int = 5
    finalists: int = 3
    weight: float = 0.6


@dataclass(frozen=True)
class Chosen:
    """What a rule chose."""

    place: int
    p_best: float | None = None
    bound: float | None = None
    calls: int = 0
    """Verdicts that were asked for."""


Rule = Callable[[Replayed, "Judge | None"], Chosen]


def by_mean(study: Replayed, judge: Judge | None) -> Chosen:
    """The highest mean, with what `lorahydra.evaluation.choosing` says of it."""
    compared = compare(study.scores)
    place = int(study.scores.mean(axis=1).argmax())
    return Chosen(place) if compared is None else Chosen(place, float(compared.p_best[place]), compared.regret_bound)


def by_finalists(study: Replayed, judge: Judge | None) -> Chosen:
    """The best by a few judged examples; the first of them are judged on all examples."""
    assert judge is not None
    count, rows = study.scores.shape
    finalists = np.argsort(study.told)[::-1][: judge.finalists]
    combined = (1 - judge.weight) * study.scores.mean(axis=1) + judge.weight * study.verdicts.mean(axis=1) / 100
    place = int(finalists[combined[finalists].argmax()])
    return Chosen(place, calls=count * judge.examples + len(finalists) * (rows - judge.examples))


RULES: dict[str, Rule] = {"highest mean": by_mean, "finalists": by_finalists}


def replay(
    surface: Surface,
    strategy: Strategy,
    seed: int,
    *,
    trials: int = 30,
    rows: int = 64,
    pruner: str = "none",
    judge: Judge | None = None,
) -> Replayed:
    """Replay one study.

    Args:
        surface: Its task.
        strategy: How it searches.
        seed: Draws the validation rows, the adapters, and what the sampler draws.
        trials: Number of trials.
        rows: Validation rows.
        pruner: Name in `hydra/sweeper/pruner`.
        judge: Scores the answers as well.
    """
    draws = np.random.default_rng([seed, 1])
    space, first = searched(strategy)
    with quietly(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        study = optuna.create_study(
            direction="maximize",
            sampler=make_sampler(
                of_group("sampler", strategy.sampler, strategy.settings), OmegaConf.create({"seed": seed})
            ),
            pruner=make_pruner(of_group("pruner", pruner)),
        )
        for params in first:
            study.enqueue_trial(params)
        sample = draws.integers(0, surface.scores.shape[3], rows)
        judged = choose(rows, judge.examples, seed) if judge else []
        done = Replayed([], [], np.empty((0, rows)), np.empty((0, rows)), [], [])
        scores, verdicts = [], []
        for number in range(trials):
            trial = study.ask()
            params = {name: suggest(trial, name, distribution) for name, distribution in space.items()}
            drawn = surface.draw(*setting(params), draws)
            if drawn is None:
                study.tell(trial, state=TrialState.FAIL)
                continue
            if ends_early(trial, drawn):
                study.tell(trial, state=TrialState.PRUNED)
                done.pruned.append(drawn)
                continue
            seen = drawn.scores[sample]
            said = (100 * seen + (judge.noise if judge else 0) * draws.standard_normal(rows)).clip(0, 100)
            value = float(seen.mean())
            if judge:
                value = (1 - judge.weight) * value + judge.weight * float(said[judged].mean()) / 100
            study.tell(trial, value)
            done.numbers.append(number)
            done.trials.append(drawn)
            done.told.append(value)
            scores.append(seen)
            verdicts.append(said)
    return Replayed(done.numbers, done.trials, np.array(scores), np.array(verdicts), done.told, done.pruned)


def searched(strategy: Strategy) -> tuple[dict[str, BaseDistribution], Sequence[Mapping[str, Any]]]:
    """The space of a strategy and its first trials."""
    shipped, first = strategy.space, strategy.first
    if strategy.search:
        search = compose([f"search={strategy.search}"]).search
        shipped, first = search.space, [search.first_trial]
    return read_space([], shipped, {}, add_shipped=True).distributions, first


@functools.cache
def _config_store() -> ConfigStore:
    """Hydra's configurations of samplers and pruners, which importing these modules registers."""
    import hydra_plugins.hydra_optuna_sweeper.config

    import hydra_plugins.lorahydra_sweeper.config  # noqa: F401

    return ConfigStore.instance()


def of_group(group: str, name: str, settings: Mapping[str, Any] | None = None) -> Any:
    """The shipped settings of a sampler or pruner, with some of them replaced."""
    node = OmegaConf.create(OmegaConf.to_container(_config_store().load(f"hydra/sweeper/{group}/{name}.yaml").node))
    return OmegaConf.merge(node, dict(settings or {}))


def setting(params: Mapping[str, Any]) -> tuple[float, float, float | None]:
    """Rate, rank and alpha of a trial; dropout and warm-up are taken to change nothing."""
    rank = 2.0 ** params[DOUBLINGS] if DOUBLINGS in params else params.get(RANK, 16)
    return params[RATE], rank, params.get(ALPHA)


def ends_early(trial: optuna.Trial, drawn: Drawn) -> bool:
    """Report the losses as a study does; whether the pruner ends the trial before its last one."""
    for step, loss in enumerate(drawn.losses[:-1], start=1):
        trial.report(-float(loss), step)
        if trial.should_prune():
            return True
    return False


@dataclass(frozen=True)
class Measured:
    """What was measured in one study."""

    regrets: list[float]
    """After each of `BUDGETS`; infinite without a trial that could be chosen."""
    near: float
    """Trials until the choice was near the best; infinite if it never was."""
    won: bool
    chosen: Chosen
    covered: bool | None
    """Whether the bound held."""
    pruned_best: bool
    """Whether a pruned trial was better than every trial that was not."""
    pruned: int


def measure(study: Replayed, surface: Surface, rule: Rule, judge: Judge | None, trials: int) -> Measured:
    """Choose after each number of trials by the score in the study, and at the end by the rule."""
    leaders: list[float] = []
    told = -math.inf
    regret = math.inf
    by_number = dict(zip(study.numbers, zip(study.told, study.trials, strict=True), strict=True))
    for number in range(trials):
        if number in by_number and by_number[number][0] > told:
            told, leader = by_number[number]
            regret = surface.best - leader.expected
        leaders.append(regret)
    near = next((number + 1 for number, regret in enumerate(leaders) if regret <= NEAR), math.inf)
    chosen = rule(study, judge)
    true = np.array([trial.true for trial in study.trials])
    behind = float(true.max() - true[chosen.place])
    return Measured(
        [leaders[min(budget, trials) - 1] for budget in BUDGETS],
        near,
        behind <= 0,
        chosen,
        None if chosen.bound is None else behind <= chosen.bound + 1e-12,
        any(trial.true > true.max() for trial in study.pruned),
        len(study.pruned),
    )


def calibration_error(stated: Floats, right: Floats, bins: int = 10) -> float:
    """Mean distance between what was stated and how often it was right, over bins of what was stated."""
    places = np.minimum((stated * bins).astype(int), bins - 1)
    groups = [places == place for place in range(bins)]
    return float(sum(abs(stated[group].sum() - right[group].sum()) for group in groups) / len(stated))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half of its 95 % interval."""
    array = np.array(values)
    return float(array.mean()), float(1.96 * array.std(ddof=1) / math.sqrt(len(array))) if len(array) > 1 else math.inf


def one(task: tuple[Surface, str, int, argparse.Namespace]) -> Measured:
    """Replay and measure one study."""
    surface, name, seed, options = task
    judge = None if options.judge_noise is None else Judge(options.judge_noise)
    study = replay(
        surface,
        STRATEGIES[name],
        seed,
        trials=options.trials,
        rows=options.rows,
        pruner=options.pruner,
        judge=judge,
    )
    return measure(study, surface, RULES["finalists" if judge else "highest mean"], judge, options.trials)


def show(name: str, studies: Sequence[Measured]) -> None:
    """Print the line of a strategy."""
    regrets = []
    for place in range(len(BUDGETS)):
        mean, half = interval([min(study.regrets[place], 1) for study in studies])
        regrets.append(f"{mean:.4f}±{half:.4f}")
    near = float(np.median([study.near for study in studies]))
    won, half = interval([float(study.won) for study in studies])
    said = [f"{name:>17} {near if math.isfinite(near) else '-':>6} {'  '.join(regrets)} {won:6.2f}±{half:.2f}"]
    covered = [study.covered for study in studies if study.covered is not None]
    if covered:
        stated = np.array([study.chosen.p_best for study in studies])
        right = np.array([float(study.won) for study in studies])
        bound = float(np.mean([study.chosen.bound for study in studies]))
        said.append(
            f"{np.mean(covered):8.3f} {bound:7.4f} {stated.mean():8.2f} {calibration_error(stated, right):6.3f}"
        )
    if any(study.pruned for study in studies):
        said.append(f"pruned {np.mean([study.pruned for study in studies]):.1f}")
        said.append(f"of them the best in {np.mean([study.pruned_best for study in studies]):.2f} of studies")
    if any(study.chosen.calls for study in studies):
        said.append(f"calls {np.mean([study.chosen.calls for study in studies]):.0f}")
    print(" ".join(said), flush=True)


def main() -> None:
    """Replay each strategy on each surface."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("surfaces", type=Path, nargs="*", help="files of surfaces/make.py")
    parser.add_argument("--simulated", action="store_true", help="also a surface by formula")
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=list(STRATEGIES))
    parser.add_argument("--pruner", default="none", help="name in hydra/sweeper/pruner")
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--rows", type=int, default=64, help="validation rows")
    parser.add_argument("--judge-noise", type=float, help="a judge by formula scores too, with so many points of noise")
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("lorahydra").setLevel(logging.ERROR)
    surfaces = [load(path) for path in options.surfaces] + ([simulated()] if options.simulated else [])
    if not surfaces:
        parser.error("give files of surfaces, or --simulated")
    budgets = "  ".join(f"regret {min(budget, options.trials):2}    " for budget in BUDGETS)
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for surface in surfaces:
            seeds, rates, ranks, rows = surface.scores.shape
            shape = f"{rates} rates x {ranks} ranks x {seeds} seeds, {rows} rows"
            print(f"{surface.name}: {shape}, best cell {surface.best:.4f}; {options.repetitions} studies each")
            print(f"         strategy trials {budgets}   winner  covered   bound P(best)  error", flush=True)
            for name in options.strategies:
                tasks = [(surface, name, seed, options) for seed in range(options.repetitions)]
                show(name, pool.map(one, tasks) if options.processes > 1 else list(map(one, tasks)))


if __name__ == "__main__":
    main()
