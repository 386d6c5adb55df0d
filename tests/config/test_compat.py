"""What lorahydra relies on in Hydra beyond its public API; a failure names what a new version has changed."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path

import pytest
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.initialize import get_gh_backup, restore_gh_from_backup
from omegaconf import DictConfig

from lorahydra.config.compat import BasicLauncher, launcher_log, main_hydra, options_parser, outcome


def test_a_program_can_run_a_sweep(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("x: 1\n")
    seen: list[int] = []

    def task(config: DictConfig) -> None:
        seen.append(config.x)

    backup = get_gh_backup()
    try:
        setup_globals()
        hydra = main_hydra(tmp_path)
        quiet = ["hydra/job_logging=none", "hydra/hydra_logging=none", f"hydra.sweep.dir={tmp_path}/out"]
        hydra.multirun("config", task, [*quiet, "x=2,3"], with_log_configuration=False)
    finally:
        restore_gh_from_backup(backup)
    assert seen == [2, 3]


def test_the_launcher_has_a_logger_of_that_name() -> None:
    module = importlib.import_module(BasicLauncher.__module__)
    assert module.log is logging.getLogger(launcher_log)


def test_the_options_of_a_program(capsys: pytest.CaptureFixture[str]) -> None:
    parser = options_parser("mine, version 1")
    options = parser.parse_intermixed_args(["-m", "a=1", "--cfg", "job", "--resolve", "b=2"])
    assert options.overrides == ["a=1", "b=2"]
    for name in ("cfg", "help", "info", "resolve", "shell_completion", "experimental_rerun", "multirun"):
        assert hasattr(options, name)
    with pytest.raises(SystemExit):
        parser.parse_args(["--version"])
    assert capsys.readouterr().out == "mine, version 1\n"


def test_what_a_job_ended_with() -> None:
    failed = JobReturn(status=JobStatus.FAILED)
    error = failed.return_value = ValueError("no")
    assert outcome(failed) is error
    done = JobReturn(status=JobStatus.COMPLETED)
    done.return_value = 0.5
    assert outcome(done) == 0.5
