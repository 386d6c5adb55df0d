"""Hydra programs to sweep over, and what their studies hold afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial
from tests.postgres import postgresql as postgresql
from tests.postgres import postgresql_server as postgresql_server
from tests.support.programs import ProgramRunner, RunningProgram, environment

from lorahydra.names import State
from lorahydra.sweep.trial_record import TrialRecord, trial_records

PROGRAM = '''
import contextlib
import json
import math
import os
import signal

import hydra
from omegaconf import OmegaConf

from lorahydra.cli.hydra_app import launch
from lorahydra.sweep.current import current_trial

calls = 0


def log(cfg, what, value=None):
    line = json.dumps([what, OmegaConf.to_container(cfg), value]) + "\\n"
    with open("calls.jsonl", "a") as file:
        file.write(line)


def sphere(cfg):
    return sum(float(cfg[name]) ** 2 for name in cfg)


def binh_and_korn(cfg):
    return 4 * cfg.x**2 + 4 * cfg.y**2, (cfg.x - 5) ** 2 + (cfg.y - 5) ** 2


def booth(cfg):
    return (cfg.x + 2 * cfg.y - 7) ** 2 + (2 * cfg.x + cfg.y - 5) ** 2


def configure(cfg, trial):
    """The example of a custom search space of Hydra's Optuna sweeper."""
    x = trial.params["x"]
    trial.suggest_float("z", x - 0.5, x + 0.5)
    trial.suggest_float("w", 0.0, 1.0)


def act(what, cfg):
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "wait":
        while True:
            signal.pause()
    elif what.startswith("lose"):
        with contextlib.suppress(BaseException):
            signal.raise_signal(signal.SIGINT)
        if what == "lose and fail":
            raise ValueError("what a library made of it")
        return 1.0
    elif what == "raise":
        raise ValueError("this one\\nfails")
    elif what == "memory":
        raise MemoryError("none left")
    elif what == "nan":
        return math.nan
    elif what == "nothing":
        return None
    elif what in ("measure", "prune"):
        trial = current_trial()
        for step in range(5):
            trial.measured(1 + step / 100 + (100 if what == "prune" else 0))
        return 1.0
    raise SystemError(what)


@hydra.main(config_path=".", config_name="config")
def main(cfg):
    global calls
    calls += 1
    log(cfg, "begins")
    what = json.loads(os.environ.get("SCRIPT", "{}")).get(str(calls))
    if what:
        return act(what, cfg)
    function = {"sphere": sphere, "booth": booth, "binh_and_korn": binh_and_korn}[os.environ.get("FUNCTION", "sphere")]
    value = function(cfg)
    log(cfg, "ends", value)
    return value


if __name__ == "__main__":
    launch(main) if "LAUNCH" in os.environ else main()
'''


@dataclass
class Program:
    """A program in a folder of its own."""

    file: Path
    runner: ProgramRunner

    def configure(self, text: str) -> None:
        """Write its config."""
        self.file.with_name("config.yaml").write_text(text)

    @property
    def url(self) -> str:
        """Its database."""
        return f"sqlite:///{self.file.parent}/studies.db"

    def overrides(self, *overrides: str) -> list[str]:
        """A sweep over it, with a study's name and without a pruner."""
        return [
            *("-m", "hydra/sweeper=lorahydra", "hydra/sweeper/pruner=none", "hydra.sweeper.study_name=s"),
            *(f"hydra.sweeper.storage={self.url}", "hydra.sweep.dir=results", "hydra.output_subdir=null", *overrides),
        ]

    def sweep(self, *overrides: str, **options: Any) -> int:
        """Run it over the study to its end: the exit code."""
        return self.start(*overrides, **options).wait()

    def start(self, *overrides: str, script: dict[int, str] | None = None, **options: Any) -> RunningProgram:
        """Start it over the study; `script` says what its trials do instead of giving their value."""
        return self.begin(*self.overrides(*overrides), SCRIPT=json.dumps(script or {}), **options)

    def begin(
        self, *arguments: str, output: Path | None = None, die_at_write: int | None = None, **variables: str
    ) -> RunningProgram:
        """Start it with these arguments."""
        return self.runner.start(
            [str(self.file), *arguments],
            self.file.parent,
            environment(**variables),
            output=output or self.file.with_name("output.txt"),
            die_at_write=die_at_write,
        )

    @property
    def calls(self) -> list[Any]:
        """What the function logged."""
        file = self.file.with_name("calls.jsonl")
        text = file.read_text() if file.exists() else ""
        # The last line may be in the middle of being written.
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    @property
    def output(self) -> str:
        """What it printed."""
        return self.file.with_name("output.txt").read_text()

    def trials(self, url: str | None = None, study: str = "s") -> list[FrozenTrial]:
        """The study's trials."""
        return stored_trials(url or self.url, study)

    def records(self, url: str | None = None, study: str = "s") -> list[TrialRecord]:
        """Trials that were begun."""
        with stored_study(url or self.url, study) as stored:
            return trial_records(stored)


def stored_trials(url: str, study: str) -> list[FrozenTrial]:
    with stored_study(url, study) as stored:
        return stored.get_trials(deepcopy=False)


@contextmanager
def stored_study(url: str, study: str) -> Iterator[optuna.Study]:
    storage = optuna.storages.RDBStorage(url, skip_compatibility_check=True, skip_table_creation=True)
    try:
        yield optuna.load_study(study_name=study, storage=storage)
    finally:
        storage.remove_session()
        storage.engine.dispose()


def counted(records: Sequence[TrialRecord]) -> list[tuple[Any, ...]]:
    """Parameters, state and values of the trials that count, in their order."""
    return [(dict(record.params), record.state, record.values) for record in records if record.counts]


def states(records: Sequence[TrialRecord]) -> list[State]:
    return [record.state for record in records]


@pytest.fixture
def program(tmp_path: Path, runner: ProgramRunner) -> Program:
    return make_program(tmp_path / "program", runner)


def make_program(folder: Path, runner: ProgramRunner) -> Program:
    folder.mkdir(parents=True)
    file = folder / "app.py"
    file.write_text(PROGRAM)
    program = Program(file, runner)
    program.configure("x: 1\ny: 1\n")
    return program


def samplers(*wanted: str) -> list[Any]:
    """Samplers with settings under which each does what is its own after two trials."""
    gone = {"cmaes": "cmaes"}
    settings = {
        "auto": ["hydra.sweeper.sampler.n_startup_trials=2"],
        "multivariate_tpe": ["hydra.sweeper.sampler.n_startup_trials=2"],
        "tpe": ["hydra.sweeper.sampler.n_startup_trials=2"],
        "random": [],
        "gp": ["hydra.sweeper.sampler.n_startup_trials=2", "hydra.sweeper.sampler.deterministic_objective=false"],
        "cmaes": ["hydra.sweeper.sampler.popsize=3"],
        "grid": [],
        "qmc": [],
    }
    return [
        pytest.param(
            name,
            values,
            id=name,
            marks=pytest.mark.skipif(name in gone and not installed(gone[name]), reason=f"{name} needs a package"),
        )
        for name, values in settings.items()
        if not wanted or name in wanted
    ]


def installed(package: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(package) is not None
