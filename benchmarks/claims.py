"""How many workers one database bears: claims of trials, and what they wait for.

python benchmarks/claims.py --storage postgresql://USER@HOST/studies --workers 32 --trials 200 --seconds 10 20
python benchmarks/claims.py --storage … --tracking http://127.0.0.1:5000 --seconds 0 0
python benchmarks/claims.py --storage … --workers 1000 --simulate

Workers are processes that go from trial to trial as real ones do, record a run with a few metrics in MLflow (with
--tracking), and sleep instead of training. It ends with 1 unless each trial finished exactly once.

With --simulate, so many trials are running, each with a connection to the database for its heartbeats, and one worker
claims beside them; between two of its claims all others have ended their trial and begun another. With --tracking,
clients then send batches of metrics as fast as the server takes them.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import random
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import optuna
import sqlalchemy
from optuna.distributions import FloatDistribution, distribution_to_json
from optuna.trial import Trial, TrialState

from lorahydra.config.schema import TrackingConfig
from lorahydra.names import Kind, State
from lorahydra.sweep.auto_sampler import AutoSampler
from lorahydra.sweep.compat import database_of, id_of, quietly, storage_of, suggest
from lorahydra.sweep.running_trial import RunningTrial
from lorahydra.sweep.sampler_state import counting
from lorahydra.sweep.storage import HEARTBEAT_SECONDS, open_storage
from lorahydra.sweep.trial_queue import TrialQueue
from lorahydra.sweep.trial_record import ATTRIBUTE

STUDY = "claims"
RANGES = {name: FloatDistribution(0, 1) for name in ("rate", "rank", "alpha")}
CLAIMS = 12
"""Claims of a simulation; times are those after the first two."""
CLIENTS, METRICS, SECONDS = 16, 10, 15
"""Of the flood of metrics: clients, metrics in a batch, and how long it lasts."""


@dataclass
class Claim:
    """How long the worker was busy between two trials, in seconds."""

    total: float
    locked: float
    """From asking for the lock until it was free again."""
    draw: float
    """Choosing the parameters, for which others wait as well."""
    processor: float
    number: int
    first: bool
    """Whether it is the first one of its worker: all begin at once."""


@dataclass
class Report:
    """What one worker did."""

    claims: list[Claim] = field(default_factory=list)
    error: str = ""


class Looper:
    """Claims trials as a worker does, and measures it."""

    def __init__(self, options: argparse.Namespace, trials: int) -> None:
        self.study = _study(options, open_storage(options.storage))
        self.queue = TrialQueue(self.study, trials)
        self._drawing = 0.0
        self._is_first = True

    def claim(self) -> tuple[RunningTrial, Claim] | None:
        """One trial; None when none is left."""
        started, used = time.perf_counter(), time.process_time()
        self._drawing = 0.0
        self.queue.close_dead()
        self.queue.records()  # for `max_failure_rate`
        asked = time.perf_counter()
        claimed, _ = self.queue.claim(1, self._draw)
        if not claimed:
            return None
        ended, used = time.perf_counter(), time.process_time() - used
        claim = Claim(ended - started, ended - asked, self._drawing, used, claimed[0].number, self._is_first)
        self._is_first = False
        return claimed[0], claim

    def _draw(self, trial: Trial) -> list[str]:
        started = time.perf_counter()
        for name, values in RANGES.items():
            suggest(trial, name, values)
        self._drawing += time.perf_counter() - started
        return []


def main() -> int:
    """Run the workers and print what they waited for."""
    options = _options()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = open_storage(options.storage)
    if STUDY in optuna.get_all_study_names(storage):
        optuna.delete_study(study_name=STUDY, storage=storage)
    optuna.create_study(study_name=STUDY, storage=storage, direction="maximize")
    storage.remove_session()
    if options.tracking:
        import mlflow.tracking  # noqa: F401 (once, before the workers are forked)
    if options.simulate:
        _simulate(options)
        if options.tracking:
            _flood(options)
        return 0
    if options.sampler == "auto":
        importlib.import_module("optuna._gp.gp")  # real workers have torch by then
    started, server = time.perf_counter(), _processor_of("postgres")
    reports = _in_processes(options)
    seconds, server = time.perf_counter() - started, _processor_of("postgres") - server
    return _show(options, reports, seconds, server)


def _show(options: argparse.Namespace, reports: list[Report], seconds: float, server: float) -> int:
    claims = [claim for report in reports for claim in report.claims]
    study = optuna.load_study(study_name=STUDY, storage=open_storage(options.storage))
    states = Counter(trial.state for trial in study.get_trials(deepcopy=False))
    twice = [number for number, n in Counter(claim.number for claim in claims).items() if n > 1]
    errors = Counter(report.error for report in reports if report.error)
    low, high = options.seconds
    print(
        f"{options.workers} workers, sampler {options.sampler}, trials of {low:g} to {high:g} s, {seconds:.0f} s in all"
    )
    print(f"trials: {dict(states)}, claimed twice: {twice or 'none'}")
    for name, some in (("first", [c for c in claims if c.first]), ("later", [c for c in claims if not c.first])):
        if some:
            lost = _quantiles([claim.total - claim.draw for claim in some])
            drawing = _quantiles([claim.draw for claim in some])
            processor = 1000 * statistics.mean(claim.processor for claim in some)
            print(f"{len(some)} {name} claims: {lost} ms lost, and {drawing} ms for the draw;", end=" ")
            print(f"{processor:.0f} ms of processor")
    if server:
        print(f"processor of PostgreSQL: {1000 * server / max(1, len(claims)):.0f} ms a trial")
    for error, times in errors.items():
        print(f"{times} workers: {error}")
    return int(states != {TrialState.COMPLETE: options.trials} or bool(twice) or bool(errors))


def _quantiles(seconds: Sequence[float]) -> str:
    ordered = sorted(1000 * each for each in seconds)
    shown = (statistics.mean(ordered), statistics.median(ordered), ordered[int(0.95 * len(ordered))], ordered[-1])
    return "mean {:.0f}, median {:.0f}, 95 % {:.0f}, longest {:.0f}".format(*shown)


def _in_processes(options: argparse.Namespace) -> list[Report]:
    context = multiprocessing.get_context("fork")
    reports: Any = context.SimpleQueue()
    workers = [context.Process(target=_work, args=(options, reports, seed)) for seed in range(options.workers)]
    for worker in workers:
        worker.start()
    done = [reports.get() for _ in workers]
    for worker in workers:
        worker.join()
    return done


def _work(options: argparse.Namespace, reports: Any, seed: int) -> None:
    report = Report()
    try:
        looper, lengths = Looper(options, options.trials), random.Random(seed)
        while (begun := looper.claim()) is not None:
            trial, claim = begun
            report.claims.append(claim)
            if options.tracking:
                _record(options.tracking, trial.number)
            time.sleep(lengths.uniform(*options.seconds))
            trial.complete([trial.params["rate"]])
    except Exception as error:
        report.error = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    reports.put(report)


def _simulate(options: argparse.Namespace) -> None:
    """One worker among many, whose trials are written to the database without processes that run them."""
    looper = Looper(options, 100 * options.workers)
    _turn_over(looper.study, options.workers)
    context = multiprocessing.get_context("fork")
    beats, ready = context.Value("i"), context.Event()
    others = context.Process(target=_beat, args=(options, beats, ready), daemon=True)
    others.start()
    ready.wait()
    claims, server, began, sent = [], 0.0, time.perf_counter(), beats.value
    for _ in range(CLAIMS):
        _turn_over(looper.study, options.workers)
        before = _processor_of("postgres")
        begun = looper.claim()
        assert begun is not None
        server += _processor_of("postgres") - before
        claims.append(begun[1])
        begun[0].complete([0.5])
    rate = (beats.value - sent) / (time.perf_counter() - began)
    others.terminate()
    held = statistics.median(claim.locked - claim.draw for claim in claims[2:])
    read = statistics.median(claim.total - claim.locked for claim in claims[2:])
    drawn = statistics.median(claim.draw for claim in claims[2:])
    processor = statistics.mean(claim.processor for claim in claims[2:])
    print(f"beside {options.workers} running trials with a connection each, and {rate:.0f} heartbeats a second:")
    print(f"a claim reads for {1000 * read:.0f} ms, and then holds the lock for {1000 * held:.0f} ms", end=" ")
    print(f"and {1000 * drawn:.0f} ms for the draw: at most {1 / (held + drawn):.1f} claims a second;")
    print(f"{1000 * processor:.0f} ms of processor, and {1000 * server / CLAIMS:.0f} ms of PostgreSQL's")


def _turn_over(study: optuna.Study, count: int) -> None:
    """End all trials that run, and begin so many others."""
    from optuna.storages._rdb import models

    database, study_id = database_of(storage_of(study)), study._study_id
    assert database is not None
    trials, values = models.TrialModel, models.TrialValueModel
    texts = {name: distribution_to_json(kind) for name, kind in RANGES.items()}
    facts = {"run_id": 32 * "0", "folder": "outputs/study/0", "seconds": 60.0}
    with database.engine.begin() as connection:
        running = sqlalchemy.select(trials.trial_id).where(trials.study_id == study_id, trials.state == "RUNNING")
        ended = [
            {"trial_id": trial, "objective": 0, "value": random.random(), "value_type": "FINITE"}
            for trial in connection.execute(running).scalars()
        ]
        states = sqlalchemy.update(trials.__table__).where(trials.study_id == study_id, trials.state == "RUNNING")
        connection.execute(states.values(state="COMPLETE", datetime_complete=sqlalchemy.func.now()))
        if ended:
            connection.execute(sqlalchemy.insert(values.__table__), ended)
        last = sqlalchemy.select(sqlalchemy.func.count()).where(trials.study_id == study_id)
        first = connection.execute(last).scalar_one()
        new = [{"study_id": study_id, "number": first + n, "state": "RUNNING"} for n in range(count)]
        connection.execute(sqlalchemy.insert(trials.__table__).values(datetime_start=sqlalchemy.func.now()), new)
        begun = connection.execute(running).scalars().all()
        params = [
            {"trial_id": trial, "param_name": name, "param_value": random.random(), "distribution_json": text}
            for trial in begun
            for name, text in texts.items()
        ]
        connection.execute(sqlalchemy.insert(models.TrialParamModel.__table__), params)
        noted = [
            {
                "trial_id": trial,
                "key": ATTRIBUTE,
                "value_json": json.dumps({**facts, "worker": {"host": f"node{trial}", "pid": trial, "namespace": 0}}),
            }
            for trial in begun
        ]
        connection.execute(sqlalchemy.insert(models.TrialUserAttributeModel.__table__), noted)


def _beat(options: argparse.Namespace, beats: Any, ready: Any) -> None:
    """Heartbeats of all running trials, each over a connection of its own that stays open."""
    threading.stack_size(256 * 1024)
    study = optuna.load_study(study_name=STUDY, storage=open_storage(options.storage))
    database = database_of(storage_of(study))
    assert database is not None
    running = [id_of(trial) for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))]
    engine = sqlalchemy.create_engine(database.engine.url, poolclass=sqlalchemy.pool.NullPool)
    opened = threading.Barrier(len(running) + 1)

    def beat(trial_id: int) -> None:
        with engine.connect() as connection, database.joined(connection):  # type: ignore[attr-defined]
            opened.wait()
            time.sleep(random.uniform(0, HEARTBEAT_SECONDS))
            while True:
                database.record_heartbeat(trial_id)
                connection.commit()
                with beats.get_lock():
                    beats.value += 1
                time.sleep(HEARTBEAT_SECONDS)

    for trial_id in running:
        threading.Thread(target=beat, args=(trial_id,), daemon=True).start()
    opened.wait()
    ready.set()
    threading.Event().wait()


def _flood(options: argparse.Namespace) -> None:
    """Batches of metrics from many clients, as fast as the server takes them."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    client = MlflowClient(options.tracking)
    runs = [client.create_run("0").info.run_id for _ in range(CLIENTS)]
    until = time.monotonic() + SECONDS

    def send(run: str) -> list[float]:
        taken = []
        while (began := time.monotonic()) < until:
            stamp = time.time_ns() // 1_000_000
            client.log_batch(run, [Metric(f"m{n}", 0.5, stamp, len(taken)) for n in range(METRICS)])
            taken.append(time.monotonic() - began)
        return taken

    with ThreadPoolExecutor(CLIENTS) as pool:
        taken = [seconds for some in pool.map(send, runs) for seconds in some]
    print(f"{CLIENTS} clients, batches of {METRICS} metrics: {len(taken) / SECONDS:.0f} batches a second;", end=" ")
    print(f"ms for each: {_quantiles(taken)}")


def _processor_of(program: str) -> float:
    """Seconds of processor that the processes of a program on this machine and their ended children have used."""
    ticks = 0
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            name, _, rest = file.read_text().partition("(")[2].rpartition(")")
            if name == program:
                ticks += sum(map(int, rest.split()[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _study(options: argparse.Namespace, storage: Any) -> optuna.Study:
    sampler = counting(_sampler(options.sampler))
    if isinstance(sampler, AutoSampler):
        sampler.fit(RANGES)
    with quietly():
        return optuna.load_study(study_name=STUDY, storage=storage, sampler=sampler)


def _sampler(name: str) -> Any:
    return AutoSampler(seed=0) if name == "auto" else optuna.samplers.RandomSampler(seed=0)


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
    parser.add_argument("--seconds", type=float, nargs=2, default=[10, 20], help="shortest and longest trial")
    parser.add_argument("--sampler", choices=["auto", "random"], default="auto")
    parser.add_argument("--simulate", action="store_true", help="running trials instead of workers")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
