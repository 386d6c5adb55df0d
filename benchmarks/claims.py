"""How many workers one database bears: claims of trials, and what they wait for.

python benchmarks/claims.py --storage postgresql://USER@HOST/studies --tracking http://127.0.0.1:5000
python benchmarks/claims.py --storage … --workers 32 --trials 200 --seconds 0
python benchmarks/claims.py --storage … --workers 1000 --simulate

Workers are processes that claim trials, record a run with a few metrics in MLflow (with --tracking), and sleep instead
of training. With --simulate one process claims trials beside so many running ones: how long the lock is held.
It ends with 1 unless each trial finished exactly once.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import Trial, TrialState, create_trial

from lorahydra.config.schema import TrackingConfig
from lorahydra.names import Kind, State
from lorahydra.sweep.auto_sampler import AutoSampler
from lorahydra.sweep.compat import quietly, suggest
from lorahydra.sweep.sampler_state import counting
from lorahydra.sweep.storage import open_storage
from lorahydra.sweep.trial_queue import TrialQueue
from lorahydra.sweep.trial_record import ATTRIBUTE

STUDY = "claims"
PARAMETERS = ("rate", "rank", "alpha")
CLAIMS = 20


@dataclass
class Report:
    """What one worker did."""

    claims: list[float] = field(default_factory=list)
    """Seconds of each claim, with the wait for the lock."""
    numbers: list[int] = field(default_factory=list)
    error: str = ""


def main() -> int:
    """Run the workers and print what they waited for."""
    options = _options()
    storage = open_storage(options.storage)
    if STUDY in optuna.get_all_study_names(storage):
        optuna.delete_study(study_name=STUDY, storage=storage)
    optuna.create_study(study_name=STUDY, storage=storage, direction="maximize")
    storage.remove_session()
    started = time.perf_counter()
    if options.simulate:
        _simulate(options)
        return 0
    if options.tracking:
        import mlflow.tracking  # noqa: F401 (once, before the workers are forked)
    reports = _in_processes(options)
    seconds = time.perf_counter() - started
    return _show(options, reports, seconds)


def _show(options: argparse.Namespace, reports: list[Report], seconds: float) -> int:
    claims = sorted(second for report in reports for second in report.claims)
    study = optuna.load_study(study_name=STUDY, storage=open_storage(options.storage))
    states = Counter(trial.state for trial in study.get_trials(deepcopy=False))
    twice = [number for number, n in Counter(n for report in reports for n in report.numbers).items() if n > 1]
    errors = Counter(report.error for report in reports if report.error)
    rate = len(claims) / seconds
    print(f"{options.workers} workers, trials of {options.seconds:g} s: {dict(states)}, twice {twice}, {seconds:.1f} s")
    if claims:
        quantiles = (statistics.median(claims), claims[int(0.95 * len(claims))], claims[-1])
        shown = ", ".join(f"{1000 * second:.0f}" for second in quantiles)
        print(f"claims: {rate:.1f} a second; median, 95 % and longest: {shown} ms")
    for error, times in errors.items():
        print(f"{times} workers: {error}")
    return int(states != {TrialState.COMPLETE: options.trials} or bool(twice) or bool(errors))


def _in_processes(options: argparse.Namespace) -> list[Report]:
    context = multiprocessing.get_context("fork")
    reports: Any = context.SimpleQueue()
    workers = [context.Process(target=_work, args=(options, reports)) for _ in range(options.workers)]
    for worker in workers:
        worker.start()
    done = [reports.get() for _ in workers]
    for worker in workers:
        worker.join()
    return done


def _simulate(options: argparse.Namespace) -> None:
    """Claims beside many running trials, which have parameters and a worker as those of real workers."""
    storage = open_storage(options.storage)
    study = _study(options, storage)
    ranges = {name: FloatDistribution(0, 1) for name in PARAMETERS}
    for number in range(options.workers):
        facts = {ATTRIBUTE: {"worker": {"host": f"node{number}", "pid": number}}}
        running = create_trial(
            state=TrialState.RUNNING, params=dict.fromkeys(ranges, 0.5), distributions=ranges, user_attrs=facts
        )
        storage.create_new_trial(storage.get_study_id_from_name(STUDY), running)
    queue = TrialQueue(study, 10 * options.workers)
    queue.claim(1, _draw)
    claims, used = [], time.process_time()
    for _ in range(CLAIMS):
        before = time.perf_counter()
        [trial], _overrides = queue.claim(1, _draw)
        claims.append(time.perf_counter() - before)
        trial.complete([0.5])
    used = time.process_time() - used
    print(f"beside {options.workers} running trials: a claim takes {1000 * statistics.median(claims):.0f} ms", end=" ")
    print(f"({1 / statistics.median(claims):.1f} a second); {1000 * used / CLAIMS:.0f} ms of processor with its end")


def _work(options: argparse.Namespace, reports: Any) -> None:
    report = Report()
    try:
        _claim_all(options, report)
    except Exception as error:
        report.error = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    reports.put(report)


def _claim_all(options: argparse.Namespace, report: Report) -> None:
    study = _study(options, open_storage(options.storage))
    queue = TrialQueue(study, options.trials)
    while True:
        before = time.perf_counter()
        claimed, _ = queue.claim(1, _draw)
        if not claimed:
            return
        report.claims.append(time.perf_counter() - before)
        [trial] = claimed
        report.numbers.append(trial.number)
        if options.tracking:
            _record(options.tracking, trial.number)
        time.sleep(options.seconds)
        trial.complete([trial.params["rate"]])


def _study(options: argparse.Namespace, storage: Any) -> optuna.Study:
    with quietly():
        return optuna.load_study(study_name=STUDY, storage=storage, sampler=counting(_sampler(options.sampler)))


def _sampler(name: str) -> Any:
    return AutoSampler(seed=0) if name == "auto" else optuna.samplers.RandomSampler(seed=0)


def _draw(trial: Trial) -> list[str]:
    for name in PARAMETERS:
        suggest(trial, name, FloatDistribution(0, 1))
    return []


def _record(uri: str, number: int) -> None:
    from lorahydra.tracking import start_run

    run = start_run(
        TrackingConfig(uri=uri, system_metrics=False),
        output_dir=Path(mkdtemp()),
        kind=Kind.TRIAL,
        run_name=str(number),
        tags={},
    )
    for step in range(10):
        run.metrics({"train/loss": 1 / (1 + step), "eval/loss": 1 / (2 + step)}, step=step)
    run.finish(State.COMPLETE, None)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", required=True, help="PostgreSQL database for the study")
    parser.add_argument("--tracking", help="address of an MLflow server; no runs without it")
    parser.add_argument("--workers", type=int, default=32)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a trial")
    parser.add_argument("--sampler", choices=["auto", "random"], default="auto")
    parser.add_argument("--simulate", action="store_true", help="running trials instead of workers")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
