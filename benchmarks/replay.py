"""Replays studies on recorded grids of trials: which way of searching, pruning and choosing finds the best adapter?

    python benchmarks/replay.py benchmarks/surfaces/*.parquet
    python benchmarks/replay.py --simulated --strategies default random before --repetitions 50
    python benchmarks/replay.py --simulated --judge-noise 15
    python benchmarks/replay.py --simulated --judge-noise 15 --judge-opinion 2
    python benchmarks/replay.py --simulated --strategies default --stop-when-sure
    python benchmarks/replay.py --simulated --pack 5 --pruner halving --neighbours 1

Spaces and samplers are those that ship (`conf/search`, `hydra/sweeper/sampler`) unless a strategy says otherwise, and
trials are told to Optuna as a study tells them. Each repetition draws another sample of validation rows, other adapters
(`surfaces/surface.py`) and another seed of the sampler.

`trials`: after how many the choice was within 0.005 of the best cell for the first time (median and its 95 % interval;
`-` for never). `regret 5`: how much better the best cell is, on average over seeds, than the setting that is chosen
after five trials (mean and its 95 % interval). After the last trial: `winner`, the share of studies that chose the
trial that was best on all rows; `P(best)`, the mean of what the study says of its choice, and its calibration error (in
brackets the error that chance alone makes in so many studies); `covered`, the share in which no trial was better than
the chosen one by more than the stated `bound`. With `--judge-opinion`, regrets are those of the metric alone, and the
rest is about what the judge sees as well. With `--stop-when-sure`, the mean number of trials until
`search.stop_when_sure` ended the study (with its 95 % interval); the regrets after that are those at its end.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import math
import multiprocessing
import operator
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
from optuna.pruners import BasePruner, NopPruner
from optuna.trial import TrialState

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.surfaces.rules import INDIFFERENCE, RULES, Judge, Replayed, Rule, highest_mean
from benchmarks.surfaces.strategies import STRATEGIES, Strategy, of_group, sampler_of, searched, setting
from benchmarks.surfaces.surface import Drawn, Floats, Surface, load, simulated

from lorahydra.evaluation.choosing import compare
from lorahydra.sweep.compat import quietly, suggest
from lorahydra.sweep.halving import Contender, HalvingPruner
from lorahydra.sweep.probable import EXAMPLES
from lorahydra.sweep.samplers import make_pruner
from lorahydra.sweep.stopping import StopRule
from lorahydra.sweep.trial_record import ATTRIBUTE

BUDGETS = (5, 10, 20, 30)
NEAR = 0.005
"""A regret that does not matter, in units of the score."""
WITHOUT_JUDGE, WITH_JUDGE = ["highest mean", "smallest"], ["finalists", "race"]
"""The rules that shipped before, and those that ship now."""


def replay(
    surface: Surface,
    strategy: Strategy,
    seed: int,
    *,
    trials: int = 30,
    rows: int = 64,
    pruner: BasePruner | None = None,
    pack: int = 1,
    judge: Judge | None = None,
    stop_rule: StopRule | None = None,
) -> Replayed:
    """Replay one study.

    Args:
        surface: Its task.
        strategy: How it searches.
        seed: Draws the validation rows, the adapters, and what the sampler draws.
        trials: Number of trials.
        rows: Validation rows.
        pruner: Ends trials early.
        pack: Trials that are trained side by side.
        judge: Scores the answers as well.
        stop_rule: Ends the study early.
    """
    draws = np.random.default_rng([seed, 1])
    space, first = searched(strategy)
    with quietly(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        pruner = pruner or NopPruner()
        study = optuna.create_study(direction="maximize", sampler=sampler_of(strategy, space, seed), pruner=pruner)
        study.enqueue_trial(dict(first))
        sample = draws.integers(0, surface.scores.shape[3], rows)
        judged = judge.order(rows)[: judge.examples] if judge else []
        done = Replayed([], [], [], np.empty((0, rows)), np.empty((0, rows)), [], [])
        scores, verdicts = [], []
        for number in range(0, trials, pack):
            if stop_rule is not None and stop_rule.ends(study, trials):
                break
            asked = [study.ask() for _ in range(min(pack, trials - number))]
            done.asked += len(asked)
            playing = []
            for trial in asked:
                params = {name: suggest(trial, name, distribution) for name, distribution in space.items()}
                rate, rank = setting(params, surface, strategy.scaling)
                playing.append(Playing(trial, rate, rank, surface.draw(rate, rank, draws)))
            train(playing, surface, pruner)
            for played in playing:
                trial, drawn = played.trial, played.drawn
                if drawn is None:
                    study.tell(trial, state=TrialState.FAIL)
                    continue
                seen = drawn.scores[sample]
                if judge and judge.opinion:
                    drawn = dataclasses.replace(drawn, opinion=judge.opinion * draws.standard_normal())
                noise = (judge.noise if judge else 0) * draws.standard_normal(rows)
                said = (100 * seen + drawn.opinion + noise).clip(0, 100)
                value = float(seen.mean())
                if judge:
                    value = (1 - judge.weight) * value + judge.weight * float(said[judged].mean()) / 100
                    trial.set_user_attr(ATTRIBUTE, {EXAMPLES: contributions(seen, said, judged, judge)})
                done.trained.append(played.points / len(drawn.losses))
                if played.points < len(drawn.losses):
                    study.tell(trial, state=TrialState.PRUNED)
                    done.pruned.append(drawn)
                    done.missed.append(value)
                    continue
                study.tell(trial, value)
                done.numbers.append(trial.number)
                done.settings.append((math.log(played.rate), math.log2(played.rank)))
                done.trials.append(drawn)
                done.told.append(value)
                scores.append(seen)
                verdicts.append(said)
    return dataclasses.replace(done, scores=np.array(scores), verdicts=np.array(verdicts))


def contributions(seen: Floats, said: Floats, judged: Sequence[int], judge: Judge) -> dict[str, list[float | None]]:
    """What a study keeps of a trial's scores on the examples."""
    verdicts: list[float | None] = [None] * len(said)
    for row in judged:
        verdicts[row] = judge.weight * float(said[row]) / 100
    return {"metrics": ((1 - judge.weight) * seen).tolist(), "judge": verdicts}


@dataclass
class Playing:
    """A trial that is being replayed."""

    trial: optuna.Trial
    rate: float
    """Learning rate, at the grid's scale."""
    rank: float
    drawn: Drawn | None
    """None if it fails."""
    points: int = 0
    """How many of its losses were measured."""


def train(pack: Sequence[Playing], surface: Surface, pruner: BasePruner) -> None:
    """Measure the losses of trials that are trained side by side, as a study does, until they end or are pruned."""
    going = [(one, one.drawn.losses) for one in pack if one.drawn is not None]
    points = max((len(losses) for _, losses in going), default=0)
    halving = pruner if isinstance(pruner, HalvingPruner) and len(pack) > 1 else None
    rungs = [math.ceil(fraction * points) for fraction in halving.fractions] if halving else []
    for point in range(1, points + 1):
        for one, losses in going:
            one.trial.report(-float(losses[point - 1]), point)
            one.points = point
        if point == points:
            return
        ended = []
        if halving is None:
            ended = [place for place, (one, _) in enumerate(going) if one.trial.should_prune()]
        elif point in rungs:
            ended = halving.behind(
                [Contender(one.rate * surface.alpha(one.rank), float(losses[point - 1])) for one, losses in going]
            )
        going = [each for place, each in enumerate(going) if place not in ended]


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
    asked: int
    """Trials until the study ended."""
    missed: bool
    """Whether a pruned trial would have had a higher score than every trial that was not pruned."""
    trained: float
    """Share of the steps of all trials that were trained."""

    @property
    def near(self) -> float:
        """Trials until the choice was near the best; infinite if it never was."""
        return next((number for number, regret in enumerate(self.regrets, 1) if regret <= NEAR), math.inf)


def measure(study: Replayed, surface: Surface, rule: Rule, judge: Judge | None, trials: int) -> Measured:
    """Choose after each number of trials, and compare the last choice with the truth.

    With a judge, the rule chooses at the end; until then the choice is the leader of the study.
    """
    regrets = []
    for number in range(1, trials + 1):
        part, by = study.until(number), rule if judge is None or number == trials else highest_mean
        regrets.append(surface.best - part.trials[by(part, judge).place].expected if part.trials else 1.0)
    place, judged = rule(study, judge)
    if judge is None or judged is None:
        compared = compare(study.scores)
    else:
        verdicts = np.where(judged, study.verdicts, np.nan) / 100
        compared = compare((1 - judge.weight) * study.scores, judge.weight * verdicts)
    assert compared is not None
    truth = judge.true if judge else operator.attrgetter("true")
    true = np.array(list(map(truth, study.trials)))
    behind, bound = float(true.max() - true[place]), float(compared.regret_bounds[place])
    return Measured(
        regrets,
        behind <= 0,
        float(compared.p_best[place]),
        behind <= bound + 1e-12,
        bound,
        0 if judged is None else int(judged.sum()),
        len(study.pruned),
        any(truth(trial) > true.max() for trial in study.pruned),
        study.asked,
        any(value > max(study.told) for value in study.missed),
        float(np.mean(study.trained)),
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
    judge = None if options.judge_noise is None else Judge(options.judge_noise, options.judge_opinion)
    settings = {} if options.neighbours is None else {"neighbours": options.neighbours}
    study = replay(
        surface,
        STRATEGIES[name],
        seed,
        trials=options.trials,
        rows=options.rows,
        pruner=make_pruner(of_group("pruner", options.pruner, settings)),
        pack=options.pack,
        judge=judge,
        stop_rule=StopRule(INDIFFERENCE, seed) if options.stop_when_sure else None,
    )
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
    if any(study.asked < len(study.regrets) for study in studies):
        said.append(f"ends after {_mean([study.asked for study in studies], digits=1).strip()} trials")
    if any(study.calls for study in studies):
        said.append(f"{np.mean([study.calls for study in studies]):7.0f} calls")
    if any(study.pruned for study in studies):
        names = ("pruned", "trained", "pruned_best", "missed")
        pruned, trained, best, missed = (np.mean([getattr(study, name) for study in studies]) for name in names)
        said.append(
            f"{pruned:.1f} pruned, {1 - trained:.2f} of the steps saved; in {missed:.2f} of studies one of them would "
            f"have won, in {best:.2f} one was the best"
        )
    return " ".join(said)


def budgets(trials: int) -> list[int]:
    """Numbers of trials after which the regret is printed."""
    return [budget for budget in BUDGETS if budget <= trials]


def _mean(values: Sequence[float], digits: int = 4) -> str:
    half = 1.96 * np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{np.mean(values):8.{digits}f}±{half:.{digits}f}"


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
    parser.add_argument("--drift", type=float, default=0.0, help="of the best rate by early losses, see `simulated`")
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=list(STRATEGIES))
    parser.add_argument(
        "--rules", nargs="+", choices=list(RULES), help="by default highest mean; with a judge finalists, race"
    )
    parser.add_argument("--pruner", default="none", help="name in hydra/sweeper/pruner")
    parser.add_argument("--neighbours", type=int, help="of pruner=halving, in place of those that ship")
    parser.add_argument("--pack", type=int, default=1, help="trials that are trained side by side")
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--stop-when-sure", action="store_true", help="studies end by search.stop_when_sure")
    parser.add_argument("--rows", type=int, default=64, help="validation rows")
    parser.add_argument("--judge-noise", type=float, help="a judge by formula scores too, with so many points of noise")
    parser.add_argument("--judge-opinion", type=float, default=0.0, help="points by which it differs between adapters")
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    options.rules = options.rules or (WITHOUT_JUDGE if options.judge_noise is None else WITH_JUDGE)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("lorahydra").setLevel(logging.ERROR)
    surfaces = [load(path) for path in options.surfaces] + (
        [simulated(drift=options.drift)] if options.simulated else []
    )
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
