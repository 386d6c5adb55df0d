"""Replays studies on recorded grids of trials: which way of searching, pruning and choosing finds the best adapter?

    python benchmarks/replay.py benchmarks/surfaces/*.parquet
    python benchmarks/replay.py --simulated --strategies today random tpe gp --repetitions 50
    python benchmarks/replay.py --simulated --judge-noise 15

Spaces and samplers are those that ship (`conf/search`, `hydra/sweeper/sampler`) unless a strategy says otherwise, and
trials are told to Optuna as a study tells them. Each repetition draws another sample of validation rows, other adapters
(`surfaces/surface.py`) and another seed of the sampler.

`trials`: after how many the choice was within 0.005 of the best cell for the first time (median and its 95 % interval;
`-` for never). `regret 5`: how much better the best cell is, on average over seeds, than the setting that is chosen
after five trials (mean and its 95 % interval). After the last trial: `winner`, the share of studies that chose the
trial that was best on all rows; `P(best)`, the mean of what the study says of its choice, and its calibration error (in
brackets the error that chance alone makes in so many studies); `covered`, the share in which no trial was better than
the chosen one by more than the stated `bound`.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import logging
import math
import multiprocessing
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna
from hydra.core.config_store import ConfigStore
from numpy.typing import NDArray
from omegaconf import OmegaConf
from optuna.distributions import BaseDistribution
from optuna.trial import TrialState

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.surfaces.surface import Drawn, Floats, Surface, load, simulated

from lorahydra.config.compose import compose
from lorahydra.evaluation.choosing import compare
from lorahydra.evaluation.judging import choose
from lorahydra.sweep.compat import quietly, suggest
from lorahydra.sweep.samplers import make_pruner, make_sampler
from lorahydra.sweep.search_space import read_space

BUDGETS = (5, 10, 20, 30)
NEAR = 0.005
"""A regret that does not matter, in units of the score."""
RATE, RANK, ALPHA, DOUBLINGS = "training.learning_rate", "lora.r", "lora.lora_alpha", "lora.r_doublings"
LOW, HIGH, HIGHER = 2e-5, 1e-3, 2e-3


def ordered(high: float = HIGH, rank: bool = True) -> dict[str, str]:
    """Rate and rank, the rank as 2 to the power of an integer, so that a sampler knows the order."""
    return {RATE: f"tag(log, interval({LOW}, {high}))"} | ({DOUBLINGS: "range(3, 7)"} if rank else {})


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
    alpha: Callable[[float], float] | None = None
    """`lora_alpha` by rank, if it is not searched; by default as in the grid."""


def spread(count: int, low: float = LOW, high: float = HIGH) -> list[dict[str, Any]]:
    """Start-up trials spread over the rates: the good one, then van der Corput's sequence, with ranks in turn."""
    shares = [sum((n >> bit & 1) / 2 ** (bit + 1) for bit in range(8)) for n in range(1, count)]
    others = [low * (high / low) ** share for share in shares]
    return [FIRST, *({RATE: rate, DOUBLINGS: (5, 3, 6, 4)[n % 4]} for n, rate in enumerate(others))]


def root(rank: float) -> float:
    """The scaling of rsLoRA, with that of `2 r` at rank 16."""
    return 8 * math.sqrt(rank)


def same(rank: float) -> float:
    """The same alpha for all ranks, as `2 r` at rank 16."""
    return 32


FEW = {"n_startup_trials": 4}
AFTER_SPREAD = {"n_startup_trials": 5}
STRATEGIES = {
    "today": Strategy("multivariate_tpe", "lora"),
    "today small": Strategy("multivariate_tpe", "small"),
    "random today": Strategy("random", "lora"),
    "random": Strategy("random", space=ordered()),
    "tpe": Strategy("tpe", space=ordered(), first=[FIRST]),
    "multivariate_tpe": Strategy("multivariate_tpe", space=ordered(), first=[FIRST]),
    "qmc": Strategy("qmc", space=ordered(), first=[FIRST], settings={"scramble": True}),
    "cmaes": Strategy("cmaes", space=ordered(), first=[FIRST]),
    "gp": Strategy("gp", space=ordered(), first=[FIRST]),
    "gp 4": Strategy("gp", space=ordered(), first=[FIRST], settings=FEW),
    "gp spread": Strategy("gp", space=ordered(), first=spread(5), settings=AFTER_SPREAD),
    "tpe spread": Strategy("multivariate_tpe", space=ordered(), first=spread(5), settings=AFTER_SPREAD),
    "gp rate": Strategy("gp", space=ordered(rank=False), first=[{RATE: 2e-4}], settings=FEW),
    "random wide": Strategy("random", space=ordered(HIGHER)),
    "tpe wide": Strategy(
        "multivariate_tpe", space=ordered(HIGHER), first=spread(5, high=HIGHER), settings=AFTER_SPREAD
    ),
    "gp wide": Strategy("gp", space=ordered(HIGHER), first=spread(5, high=HIGHER), settings=AFTER_SPREAD),
    "gp root": Strategy("gp", space=ordered(), first=spread(5), settings=AFTER_SPREAD, alpha=root),
    "gp same": Strategy("gp", space=ordered(), first=spread(5), settings=AFTER_SPREAD, alpha=same),
}
"""`spread`: the first five trials are spread over the rates; `wide`: up to 2e-3; `root` and `same`: scaled by rank."""


@dataclass(frozen=True)
class Replayed:
    """The trials of one study that ended with a score, in their order."""

    numbers: list[int]
    settings: list[tuple[float, float]]
    """Natural logarithm of the rate, as at the grid's scale, and log2 of the rank."""
    trials: list[Drawn]
    scores: Floats
    """On the validation rows, shape (trials, rows)."""
    verdicts: Floats
    """What a judge says of each answer, 0…100, same shape; a study has only some of them."""
    told: list[float]
    """The score of each trial in the study."""
    pruned: list[Drawn]

    def until(self, number: int) -> Replayed:
        """The study after so many trials."""
        count = sum(done < number for done in self.numbers)
        cut = (part[:count] for part in (self.settings, self.trials, self.scores, self.verdicts, self.told))
        return Replayed(self.numbers[:count], *cut, self.pruned)


@dataclass(frozen=True)
class Judge:
    """A judge by formula: a verdict is the quality of an answer, 100 times its score, plus normal noise, cut to 0…100.

    No surface of a real judge can be made offline.
    """

    noise: float
    """Standard deviation in points."""
    examples: int = 5
    """Judged in each trial; the ways to choose may judge more."""
    finalists: int = 3
    weight: float = 0.6


class Choice(NamedTuple):
    """What a rule chose."""

    place: int
    """Of the trial."""
    judged: NDArray[np.bool_] | None = None
    """The verdicts that were asked for, shape (trials, rows); None without a judge."""


Rule = Callable[[Replayed, "Judge | None"], Choice]


def highest_mean(study: Replayed, judge: Judge | None) -> Choice:
    """The trial with the highest score."""
    return Choice(int(np.argmax(study.told)))


def smoothed(study: Replayed, judge: Judge | None) -> Choice:
    """The trial with the highest mean of a Gaussian process over rate and rank, which knows that neighbours are alike.

    The noise is that of the difference of two trials on the same rows; the length scales, in decades and doublings, and
    the spread are those of a coarse grid that make the scores most likely.
    """
    count, rows = study.scores.shape
    told = np.array(study.told)
    if count < 4:
        return Choice(int(told.argmax()))
    own = study.scores - study.scores.mean(axis=0)
    noise = float(own.var(axis=1, ddof=1).mean()) * count / (count - 1) / rows
    places, centred = np.array(study.settings) / (math.log(10), 1), told - told.mean()
    best, means = -math.inf, told
    for decades, doublings, spread in itertools.product((0.3, 0.6, 1.2), (2.0, 6.0), (0.003, 0.01, 0.03, 0.1)):
        gaps = (places[:, None] - places) / (decades, doublings)
        prior = spread**2 * np.exp(-0.5 * (gaps**2).sum(axis=2))
        total = prior + noise * np.eye(count)
        solved = np.linalg.solve(total, centred)
        likelihood = -0.5 * float(centred @ solved) - 0.5 * float(np.linalg.slogdet(total)[1])
        if likelihood > best:
            best, means = likelihood, prior @ solved
    return Choice(int(means.argmax()))


def finalists(study: Replayed, judge: Judge | None) -> Choice:
    """The best by a few judged examples; the first of them are judged on all examples."""
    assert judge is not None
    last = np.argsort(study.told)[::-1][: judge.finalists]
    judged = study.verdicts < 0
    judged[:, choose(judged.shape[1], judge.examples, 0)] = True
    judged[last] = True
    combined = (1 - judge.weight) * study.scores.mean(axis=1) + judge.weight * study.verdicts.mean(axis=1) / 100
    return Choice(int(last[combined[last].argmax()]), judged)


RULES: dict[str, Rule] = {"highest mean": highest_mean, "smoothed": smoothed, "finalists": finalists}


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
        judged = choose(rows, judge.examples, 0) if judge else []
        done = Replayed([], [], [], np.empty((0, rows)), np.empty((0, rows)), [], [])
        scores, verdicts = [], []
        for number in range(trials):
            trial = study.ask()
            params = {name: suggest(trial, name, distribution) for name, distribution in space.items()}
            rate, rank = setting(params, surface, strategy.alpha)
            drawn = surface.draw(rate, rank, draws)
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
            done.settings.append((math.log(rate), math.log2(rank)))
            done.trials.append(drawn)
            done.told.append(value)
            scores.append(seen)
            verdicts.append(said)
    return dataclasses.replace(done, scores=np.array(scores), verdicts=np.array(verdicts))


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


def setting(
    params: Mapping[str, Any], surface: Surface, alpha: Callable[[float], float] | None = None
) -> tuple[float, float]:
    """Rate, as at the grid's scale, and rank of a trial; dropout and warm-up are taken to change nothing.

    Adam's steps do not depend on the size of gradients, so another `lora_alpha` is much the same as another rate: it is
    replayed as the rate times the quotient of the scales.

    Args:
        params: The parameters of the trial.
        surface: The grid.
        alpha: `lora_alpha` by rank, if the parameters do not have it.
    """
    rank = 2.0 ** params[DOUBLINGS] if DOUBLINGS in params else float(params.get(RANK, 16))
    usual = surface.alpha_per_rank * rank
    return params[RATE] * params.get(ALPHA, alpha(rank) if alpha else usual) / usual, rank


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
    """After each number of trials from 1; 1 without a trial that could be chosen."""
    won: bool
    """Whether the trial that was best on all rows was chosen."""
    p_best: float
    covered: bool
    """Whether the bound held."""
    bound: float
    calls: int
    """Verdicts that were asked for."""
    pruned: int
    pruned_best: bool
    """Whether a pruned trial was better than every trial that was not."""

    @property
    def near(self) -> float:
        """Trials until the choice was near the best; infinite if it never was."""
        return next((number for number, regret in enumerate(self.regrets, 1) if regret <= NEAR), math.inf)


def measure(study: Replayed, surface: Surface, rule: Rule, judge: Judge | None, trials: int) -> Measured:
    """Choose after each number of trials, and compare the last choice with the truth."""
    regrets = []
    for number in range(1, trials + 1):
        part = study.until(number)
        regrets.append(surface.best - part.trials[rule(part, judge).place].expected if part.trials else 1.0)
    place, judged = rule(study, judge)
    if judge is None or judged is None:
        compared = compare(study.scores, best=place)
    else:
        verdicts = np.where(judged, study.verdicts, np.nan) / 100
        compared = compare((1 - judge.weight) * study.scores, judge.weight * verdicts, best=place)
    assert compared is not None
    true = np.array([trial.true for trial in study.trials])
    behind = float(true.max() - true[place])
    return Measured(
        regrets,
        behind <= 0,
        float(compared.p_best[place]),
        behind <= compared.regret_bound + 1e-12,
        compared.regret_bound,
        0 if judged is None else int(judged.sum()),
        len(study.pruned),
        any(trial.true > true.max() for trial in study.pruned),
    )


def calibration_error(stated: Floats, right: Floats, bins: int = 5) -> float:
    """Mean distance between what was stated and how often it was right, over equal bins of what was stated."""
    places = np.minimum((stated * bins).astype(int), bins - 1)
    groups = [places == place for place in range(bins)]
    return float(sum(abs(stated[group].sum() - right[group].sum()) for group in groups) / len(stated))


def chance_error(stated: Floats) -> float:
    """The calibration error that so many statements have on average if they are perfectly calibrated."""
    draws = np.random.default_rng(0)
    return float(np.mean([calibration_error(stated, draws.random(len(stated)) < stated) for _ in range(200)]))


def one(task: tuple[Surface, str, int, argparse.Namespace]) -> dict[str, Measured]:
    """Replay a study, and measure what each rule chooses in it."""
    surface, name, seed, options = task
    judge = None if options.judge_noise is None else Judge(options.judge_noise)
    sizes = {"trials": options.trials, "rows": options.rows}
    study = replay(surface, STRATEGIES[name], seed, **sizes, pruner=options.pruner, judge=judge)
    return {rule: measure(study, surface, RULES[rule], judge, options.trials) for rule in options.rules}


def line(name: str, studies: Sequence[Measured]) -> str:
    """The line of a strategy and a rule."""
    said = [f"{name:>26} {_median([study.near for study in studies]):>7}"]
    said += [_mean([study.regrets[budget - 1] for study in studies]) for budget in budgets(len(studies[0].regrets))]
    won = np.array([float(study.won) for study in studies])
    stated = np.array([study.p_best for study in studies])
    covered, bound = (np.mean([getattr(study, name) for study in studies]) for name in ("covered", "bound"))
    error, chance = calibration_error(stated, won), chance_error(stated)
    said.append(f"{won.mean():6.2f} {stated.mean():7.2f} {error:6.3f} ({chance:.3f}) {covered:8.3f} {bound:7.4f}")
    if any(study.calls for study in studies):
        said.append(f"{np.mean([study.calls for study in studies]):7.0f} calls")
    if any(study.pruned for study in studies):
        lost = np.mean([study.pruned_best for study in studies])
        said.append(f"{np.mean([study.pruned for study in studies]):.1f} pruned, the best one in {lost:.2f} of studies")
    return " ".join(said)


def budgets(trials: int) -> list[int]:
    """Numbers of trials after which the regret is printed."""
    return [budget for budget in BUDGETS if budget <= trials]


def _mean(values: Sequence[float]) -> str:
    half = 1.96 * np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{np.mean(values):8.4f}±{half:.4f}"


def _median(values: Sequence[float]) -> str:
    """The median and its 95 % interval, by the order statistics."""
    ordered, half = sorted(values), 0.98 * math.sqrt(len(values))
    low, high = (ordered[min(max(round(len(values) / 2 + side * half), 0), len(values) - 1)] for side in (-1, 1))
    return "/".join(f"{value:.0f}" if math.isfinite(value) else "-" for value in (low, float(np.median(values)), high))


def main() -> None:
    """Replay each strategy on each surface."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("surfaces", type=Path, nargs="*", help="files of surfaces/make.py")
    parser.add_argument("--simulated", action="store_true", help="also a surface by formula")
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=list(STRATEGIES))
    parser.add_argument("--rules", nargs="+", choices=list(RULES), help="highest mean; with a judge, finalists")
    parser.add_argument("--pruner", default="none", help="name in hydra/sweeper/pruner")
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--rows", type=int, default=64, help="validation rows")
    parser.add_argument("--judge-noise", type=float, help="a judge by formula scores too, with so many points of noise")
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    options.rules = options.rules or ["highest mean" if options.judge_noise is None else "finalists"]
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("lorahydra").setLevel(logging.ERROR)
    surfaces = [load(path) for path in options.surfaces] + ([simulated()] if options.simulated else [])
    if not surfaces:
        parser.error("give files of surfaces, or --simulated")
    regrets = " ".join(f"{f'regret {budget}':>15}" for budget in budgets(options.trials))
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for surface in surfaces:
            seeds, rates, ranks, rows = surface.scores.shape
            shape = f"{rates} rates x {ranks} ranks x {seeds} seeds, {rows} rows"
            print(f"{surface.name}: {shape}, best cell {surface.best:.4f}; {options.repetitions} studies each")
            print(
                f"{'strategy, rule':>26}  trials {regrets} winner P(best)  error (chance) covered   bound", flush=True
            )
            for name in options.strategies:
                tasks = [(surface, name, seed, options) for seed in range(options.repetitions)]
                studies = pool.map(one, tasks, chunksize=1) if options.processes > 1 else list(map(one, tasks))
                for rule in options.rules:
                    print(line(f"{name}, {rule}", [study[rule] for study in studies]), flush=True)


if __name__ == "__main__":
    main()
