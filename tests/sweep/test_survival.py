"""A study survives the death of its processes: every trial is counted once, and the draws are those of one process."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.support.programs import ProgramRunner
from tests.sweep.conftest import Program, counted, make_program, samplers, states

from lorahydra.names import State
from lorahydra.sweep.settings import MOST_DEATHS
from lorahydra.sweep.storage import open_storage
from lorahydra.utils.processes import this_process

pytestmark = pytest.mark.slow

SPACE = ["x=interval(-5.5, 5.5)", "y=interval(0.0, 1.0)"]
GRID = ["x=range(0, 6)", "y=choice(0.5, 0.75)"]


def settings(sampler: str, n_trials: int, *overrides: str) -> list[str]:
    space = GRID if sampler == "grid" else SPACE
    return [
        *space,
        f"hydra/sweeper/sampler={sampler}",
        "hydra.sweeper.sampler.seed=11",
        f"hydra.sweeper.n_trials={n_trials}",
        *overrides,
    ]


def check_once(program: Program, whole: Program, n_trials: int) -> None:
    """The study of `program` holds what that of `whole` holds, beside interrupted trials."""
    records = program.records()
    assert State.RUNNING not in states(records)
    assert len(counted(records)) == n_trials
    assert counted(records) == counted(whole.records())
    results = [p.file.with_name("results").joinpath("optimization_results.yaml").read_text() for p in (program, whole)]
    assert results[0] == results[1]


@pytest.mark.parametrize(("sampler", "overrides"), samplers("auto", "multivariate_tpe", "cmaes", "grid", "qmc"))
def test_processes_killed_in_trials(sampler: str, overrides: list[str], tmp_path: Path, runner: ProgramRunner) -> None:
    n_trials, kills = 6, [1, 3]
    command = settings(sampler, n_trials, *overrides)
    whole, program = (make_program(tmp_path / name, runner) for name in ("whole", "killed"))
    assert whole.sweep(*command) == 0, whole.output
    finished = []
    for call in kills:
        assert program.sweep(*command, script={call: "kill"}) == -signal.SIGKILL, program.output
        finished.append(counted(program.records()))
    assert program.sweep(*command) == 0, program.output
    check_once(program, whole, n_trials)
    for earlier in finished:
        assert counted(program.records())[: len(earlier)] == earlier
    assert states(program.records()).count(State.INTERRUPTED) == len(kills)


@pytest.mark.parametrize(("sampler", "overrides"), samplers("tpe", "cmaes", "grid"))
def test_batches_killed_in_their_second_trial(
    sampler: str, overrides: list[str], tmp_path: Path, runner: ProgramRunner
) -> None:
    command = settings(sampler, 6, "hydra.sweeper.n_jobs=2", *overrides)
    whole, program = (make_program(tmp_path / name, runner) for name in ("whole", "killed"))
    assert whole.sweep(*command) == 0, whole.output
    assert program.sweep(*command, script={4: "kill"}) == -signal.SIGKILL
    assert program.sweep(*command) == 0, program.output
    actual, expected = counted(program.records()), counted(whole.records())
    assert len(actual) == 6
    # The fourth trial is taken up beside the fifth, which the whole study begins after it.
    assert actual[:4] == expected[:4]


@pytest.mark.slow
def test_ten_kills_at_any_moment(tmp_path: Path, runner: ProgramRunner) -> None:
    n_trials, kills, chance = 12, 10, random.Random(5)
    command = settings("multivariate_tpe", n_trials, f"hydra.sweeper.max_deaths={kills}")
    whole, program = (make_program(tmp_path / name, runner) for name in ("whole", "killed"))
    assert whole.sweep(*command) == 0
    # Making the tables is half of all writes, and is killed in a test of its own.
    open_storage(program.url).engine.dispose()  # type: ignore[attr-defined]
    for _ in range(kills):
        assert program.sweep(*command, die_at_write=chance.randint(1, 30)) == -signal.SIGKILL, program.output
    assert program.sweep(*command) == 0, program.output
    check_once(program, whole, n_trials)


QUEUE = """
import sys
from types import SimpleNamespace

import optuna
from optuna.distributions import FloatDistribution, IntDistribution

from lorahydra.sweep.trial_queue import TrialQueue
from lorahydra.sweep.study_store import open_study

name, batch, n_trials = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
space = {"x": IntDistribution(0, 5), "y": FloatDistribution(0.5, 1, step=0.25)}
sampler = {
    "multivariate_tpe": lambda: optuna.samplers.TPESampler(
        seed=11, multivariate=True, constant_liar=True, n_startup_trials=1
    ),
    "random": lambda: optuna.samplers.RandomSampler(seed=11),
    "grid": lambda: optuna.samplers.GridSampler({"x": range(6), "y": [0.5, 0.75, 1.0]}, seed=11),
    "qmc": lambda: optuna.samplers.QMCSampler(seed=11),
    "cmaes": lambda: optuna.samplers.CmaEsSampler(seed=11, popsize=2),
}[name]()
objective = SimpleNamespace(
    stop_rule=None,
    study_name="s", directions=["minimize"], is_worker=False, spec=lambda space: {"a": "b"}, command=lambda: None
)
pruner = optuna.pruners.NopPruner()
settings = SimpleNamespace(storage="sqlite:///studies.db", sampler=sampler, pruner=pruner, n_trials=n_trials)
queue = TrialQueue(open_study(settings, objective, None), n_trials)


def configure(trial):
    for key, distribution in space.items():
        trial._suggest(key, distribution)
    return []


while True:
    queue.close_dead()
    claimed, _ = queue.claim(batch, configure)
    if not claimed:
        break
    for trial in claimed:
        trial.complete([trial.params["x"] ** 2 + trial.params["y"]])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "batch", "n_trials", "step"),
    # Close together for one sampler: the others differ in what they restore, not in how they write.
    [
        *(("multivariate_tpe", 1, 2, 3), ("random", 2, 4, 13), ("grid", 1, 3, 21), ("qmc", 1, 3, 21)),
        ("cmaes", 1, 3, 21),
    ],
)
def test_killed_in_front_of_a_write(
    sampler: str, batch: int, n_trials: int, step: int, tmp_path: Path, runner: ProgramRunner
) -> None:
    if sampler == "cmaes":
        pytest.importorskip("cmaes")
    # Making the tables is most of all writes, and is the same for each.
    tables, command = tmp_path / "tables.db", [sampler, str(batch), str(n_trials)]
    open_storage(f"sqlite:///{tables}").engine.dispose()  # type: ignore[attr-defined]

    def new(name: str) -> Program:
        program = make_program(tmp_path / name, runner)
        program.file.write_text(QUEUE)
        shutil.copy(tables, program.file.with_name("studies.db"))
        return program

    whole = new("whole")
    assert whole.begin(*command, die_at_write=100_000).wait() == 0, whole.output
    expected, writes = counted(whole.records()), int(whole.output.split()[-2])
    assert writes > 40

    def kill(write: int) -> None:
        program = new(str(write))
        assert program.begin(*command, die_at_write=write).wait() == -signal.SIGKILL, (write, program.output)
        assert program.begin(*command).wait() == 0, (write, program.output)
        records = program.records()
        assert State.RUNNING not in states(records), write
        assert counted(records) == expected, write

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(kill, range(1, writes + 1, step)))


@pytest.mark.parametrize("write", range(5, 80, 25))
def test_killed_while_the_tables_are_made(write: int, program: Program) -> None:
    program.file.write_text(QUEUE)
    assert program.begin("random", "1", "4", die_at_write=write).wait() == -signal.SIGKILL
    assert program.begin("random", "1", "4").wait() == 0, program.output
    assert [state for _, state, _ in counted(program.records())] == [State.COMPLETE] * 4


@pytest.mark.slow
def test_killed_while_dead_trials_are_closed(tmp_path: Path, runner: ProgramRunner) -> None:
    command = settings("random", 2)
    whole, killed = (make_program(tmp_path / name, runner) for name in ("whole", "killed"))
    assert whole.sweep(*command) == 0
    assert killed.sweep(*command, script={2: "kill"}) == -signal.SIGKILL
    for write in range(2, 32, 5):
        program = make_program(tmp_path / str(write), runner)
        shutil.copy(killed.file.with_name("studies.db"), program.file.parent)
        if program.sweep(*command, die_at_write=write) != 0:
            assert program.sweep(*command) == 0, (write, program.output)
        check_once(program, whole, 2)


def test_a_trial_that_kills_every_process(program: Program) -> None:
    command = settings("random", 2)
    assert program.sweep(*command, script={1: "kill"}) == -signal.SIGKILL
    first = program.records()[0]
    for calls in (2, 3):  # an interrupt is not a death, and takes none back
        running = program.start(*command, script={1: "wait"})
        running.wait_for(lambda calls=calls: len(program.calls) == calls)  # type: ignore[misc]
        running.send_signal(signal.SIGINT)
        assert running.wait() != 0
        assert program.records()[-1].deaths == [None]
    assert "Trial 0 was killed with its process (often: out of memory), once with these parameters" in program.output
    assert program.sweep(*command, script={1: "kill"}) == -signal.SIGKILL
    assert program.sweep(*command) == 0, program.output
    last = [record for record in program.records() if record.counts]
    assert states(last) == [State.FAILED, State.COMPLETE]
    assert last[0].failure == f"died: its process was killed {MOST_DEATHS} times (often: out of memory)"
    assert last[0].params == first.params


def test_more_deaths_are_allowed_where_machines_are_taken_away(program: Program) -> None:
    command = settings("random", 1, "hydra.sweeper.max_deaths=4")
    for _ in range(3):
        assert program.sweep(*command, script={1: "kill"}) == -signal.SIGKILL
    assert program.sweep(*command) == 0, program.output
    assert states(program.records()) == [*[State.INTERRUPTED] * 3, State.COMPLETE]


SILENCE = """
import sqlite3
from types import SimpleNamespace
from lorahydra.sweep import trial_queue

def grow_old(seconds):
    with sqlite3.connect("studies.db") as connection:
        connection.execute("UPDATE trial_heartbeats SET heartbeat = datetime('now', '-91 seconds')")

trial_queue.time = SimpleNamespace(sleep=grow_old)
"""


def test_a_container_that_is_restarted(program: Program) -> None:
    command = settings("random", 2)
    assert program.sweep(*command, script={2: "kill"}) == -signal.SIGKILL
    with sqlite3.connect(program.file.with_name("studies.db")) as connection:
        connection.execute("DELETE FROM trial_heartbeats")  # the killed process may not have given one
        connection.execute(
            "INSERT INTO trial_heartbeats (trial_id, heartbeat) SELECT 2, datetime('now', '-30 seconds')"
        )
        [[facts]] = connection.execute("SELECT value_json FROM trial_user_attributes WHERE trial_id = 2")
        moved = json.loads(facts) | {"worker": this_process() | {"namespace": 0}}
        connection.execute("UPDATE trial_user_attributes SET value_json = ? WHERE trial_id = 2", [json.dumps(moved)])
    program.file.write_text(SILENCE + program.file.read_text())
    assert program.sweep(*command) == 0, program.output
    [seconds] = re.findall(
        r"trial 1 ran in a process that cannot be seen from here, last heard from (\d+)", program.output
    )
    assert 30 <= int(seconds) < 90, "what was written above, and the time until it was read"
    assert states(program.records()) == [State.COMPLETE, State.INTERRUPTED, State.COMPLETE]
    assert (program.file.with_name("results") / "optimization_results.yaml").exists()


def test_four_processes_share_a_study(program: Program) -> None:
    share(program, settings("random", 12))


def share(program: Program, command: list[str], url: str | None = None) -> None:
    outputs = [program.file.with_name(f"output{i}.txt") for i in range(4)]
    started = [program.start(*command, output=output) for output in outputs]
    assert [running.wait() for running in started] == [0] * 4, [output.read_text() for output in outputs]
    records = program.records(url)
    assert states(records) == [State.COMPLETE] * 12
    assert [record.number for record in records] == list(range(12))
    assert len({str(record.params) for record in records}) == 12
    assert len(program.calls) == 24
    assert (program.file.with_name("results") / "optimization_results.yaml").exists()


def test_one_of_two_processes_is_killed(program: Program) -> None:
    command = settings("random", 10)
    first = program.start(*command, script={3: "wait"}, output=program.file.with_name("first.txt"))
    first.wait_for(lambda: len(program.calls) == 5)
    other = program.start(*command)
    first.wait_for(lambda: len(program.calls) >= 9)
    first.kill()
    assert first.wait() == -signal.SIGKILL
    assert other.wait() == 0, program.output
    program.sweep(*command)
    records = program.records()
    assert len(counted(records)) == 10
    assert len({str(params) for params, *_ in counted(records)}) == 10
    assert states(records).count(State.INTERRUPTED) == 1


def test_a_living_process_keeps_its_trial(program: Program) -> None:
    command = settings("random", 3)
    first = program.start(*command, script={1: "wait"}, output=program.file.with_name("first.txt"))
    first.wait_for(lambda: len(program.calls) == 1)
    try:
        assert program.sweep(*command) == 0, program.output
        assert states(program.records()) == [State.RUNNING, State.COMPLETE, State.COMPLETE]
        assert "the last trials are running in other processes" in program.output
    finally:
        first.kill()
        first.wait()


def test_ctrl_c(program: Program) -> None:
    command = settings("random", 3)
    running = program.start(*command, script={2: "wait"})
    running.wait_for(lambda: len(program.calls) == 3)
    running.send_signal(signal.SIGINT)
    assert running.wait() != 0
    records = program.records()
    assert states(records) == [State.COMPLETE, State.INTERRUPTED]
    interrupted = records[1].params
    assert program.sweep(*command) == 0, program.output
    records = program.records()
    assert states(records) == [State.COMPLETE, State.INTERRUPTED, State.COMPLETE, State.COMPLETE]
    assert records[2].params == interrupted


@pytest.mark.parametrize(
    ("act", "call", "expected"),
    [
        ("lose", 1, [State.COMPLETE]),
        ("lose and fail", 2, [State.COMPLETE, State.INTERRUPTED]),
        ("lose", 3, [State.COMPLETE] * 3),
    ],
)
def test_an_interrupt_that_is_swallowed(act: str, call: int, expected: list[State], program: Program) -> None:
    command = settings("random", 3)
    assert program.sweep(*command, script={call: act}, LAUNCH="1") == 130, program.output
    assert program.output.splitlines()[-1] == "lorahydra: interrupted"
    assert states(program.records()) == expected
    assert not program.file.with_name("results").joinpath("optimization_results.yaml").exists()
    assert program.sweep(*command, LAUNCH="1") == 0, program.output
    assert len(counted(program.records())) == 3


def test_a_custom_space_that_fails_takes_no_trial(program: Program) -> None:
    command = [*settings("random", 2), "hydra.sweeper.custom_search_space=app.configure"]
    program.configure("x: 1\ny: 1\nz: 1\nw: 1\n")
    source = program.file.read_text()
    program.file.write_text(source.replace('x = trial.params["x"]', 'x = trial.params["q"]'))
    assert program.sweep(*command) != 0
    assert counted(program.records()) == []
    program.file.write_text(source)
    assert program.sweep(*command) == 0, program.output
    assert states(program.records()).count(State.COMPLETE) == 2
    assert len(counted(program.records())) == 2


def test_more_trials(tmp_path: Path, runner: ProgramRunner) -> None:
    whole, program = (make_program(tmp_path / name, runner) for name in ("whole", "raised"))
    startup_trials = "hydra.sweeper.sampler.n_startup_trials=2"
    assert whole.sweep(*settings("tpe", 6, startup_trials)) == 0
    for n_trials in (2, 2, 5, 6):
        assert program.sweep(*settings("tpe", n_trials, startup_trials)) == 0
        assert len(program.records()) == n_trials
    check_once(program, whole, 6)


def test_another_space(program: Program) -> None:
    command = settings("random", 2)
    assert program.sweep(*command) == 0
    assert program.sweep(*settings("random", 4), "x=interval(-5.5, 6.5)") != 0
    assert "study s cannot be resumed with other settings" in program.output
    assert "search of x: FloatDistribution(high=5.5, log=False, low=-5.5, step=None) → FloatDistribution(high=6.5" in (
        program.output
    )
    assert program.sweep(*settings("random", 4), "y=0.5") != 0
    assert "low=0.0, step=None) → not set" in program.output
    assert len(program.records()) == 2


def test_another_direction(program: Program) -> None:
    assert program.sweep(*settings("random", 2)) == 0
    assert program.sweep(*settings("random", 4), "hydra.sweeper.direction=maximize") != 0
    assert "study s has the directions minimize, and now they are maximize: begin a new study" in program.output
    assert len(program.records()) == 2


@pytest.mark.service
def test_postgresql(tmp_path: Path, runner: ProgramRunner, postgresql: str) -> None:
    whole, killed, shared = (make_program(tmp_path / name, runner) for name in ("whole", "killed", "shared"))

    def command(study: str, n_trials: int) -> list[str]:
        overrides = [f"hydra.sweeper.study_name={study}", f"hydra.sweeper.storage='{postgresql}'"]
        return settings("random", n_trials, *overrides)

    assert whole.sweep(*settings("random", 4)) == 0
    for write in (None, 9, 14, 23):
        options: dict[str, Any] = {"script": {2: "kill"}} if write is None else {"die_at_write": write}
        assert killed.sweep(*command("killed", 4), **options) == -signal.SIGKILL, killed.output
    assert killed.sweep(*command("killed", 4)) == 0, killed.output
    actual = counted(killed.records(postgresql, "killed"))
    assert actual == counted(whole.records())
    share(shared, [o for o in command("s", 12)], postgresql)
