"""Runs a Hydra application so that each of its errors is one clear line instead of Hydra's report."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from lorahydra.cli.exits import TRACEBACK, exit_codes, wants_traceback
from lorahydra.cli.hydra_options import hydra_arguments, program_name, shared_output
from lorahydra.config.compose import config_dir, explain, hydra_overrides, register, to_config
from lorahydra.config.schema import ExperimentConfig
from lorahydra.config.showing import password_in_environment, without_password
from lorahydra.errors import STUDY_KEPT, ConfigError, LorahydraError
from lorahydra.names import ANSWERS_FILE, CHECKPOINTS_DIR, TRAINING_FILE
from lorahydra.sweep.current import context, current_trial
from lorahydra.sweep.workers import is_worker, watch_parent
from lorahydra.utils.interrupts import listen, stop_listening

__all__ = ["launch", "run_task", "train_command"]


def launch(app: Callable[[], object]) -> None:
    """Call a function that `@hydra.main` made, with the process's arguments.

    Raises:
        SystemExit: With 2, 3 or 130, after one line on stderr, for every error whose cause is outside the code.
    """
    listen(_study_hint, always=is_worker())
    try:
        _launch(app)
    finally:
        stop_listening()


def _launch(app: Callable[[], object]) -> None:
    register()
    # A log file on a full disk must not print a traceback for each line that is lost.
    logging.raiseExceptions = wants_traceback()
    # Hydra prints errors itself, in several lines and with exit code 1, unless it is told not to catch them.
    os.environ[TRACEBACK] = "1" if wants_traceback() else "0"
    os.environ["HYDRA_FULL_ERROR"] = "1"
    watch_parent()
    with exit_codes(_study_hint):
        sys.argv[1:] = hydra_arguments(password_in_environment(hydra_overrides(sys.argv[1:])))
        context.arguments = list(sys.argv)
        try:
            with shared_output(sys.argv[1:]):
                app()
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            if wants_traceback() or (isinstance(error, ValueError) and not _raised_by_hydra(error)):
                raise
            raise explain(error) from error


def _raised_by_hydra(error: BaseException) -> bool:
    *_, (frame, _line) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__", "").partition(".")[0] in ("hydra", "omegaconf")


def run_task(tree: DictConfig) -> float | list[float]:
    """Run the trial that Hydra composed, alone or in a study, and return its objective or objectives."""
    hydra_config = HydraConfig.get()
    overrides = list(hydra_config.overrides.task)
    if current_trial() is not None:
        from lorahydra.sweep.study_trial import study_task

        return study_task(tree)
    if hydra_config.mode == RunMode.MULTIRUN:
        return _run(to_config(tree), overrides)
    output_dir = Path(hydra_config.runtime.output_dir)
    with exit_codes(lambda: _resume_hint(overrides, str(output_dir))), _nothing_left(output_dir):
        config = to_config(tree)
        if config.study is not None:
            raise ConfigError(f"study={config.study} names a study, and this is a single trial: add -m")
        return _run(config, overrides)


def _run(config: ExperimentConfig, overrides: list[str]) -> float:
    # Imported here: torch takes seconds, and a typo in a key should be reported at once.
    from lorahydra.trial.run import run_trial

    return run_trial(config, overrides=overrides).combined


@contextmanager
def _nothing_left(folder: Path) -> Iterator[None]:
    """Remove the folder that Hydra made for a run that could not begin; the run has left nothing in it."""
    try:
        yield
    except LorahydraError:
        files = [path for path in folder.rglob("*") if not path.is_dir()]
        if all(path.parent.name == ".hydra" or path.suffix == ".log" for path in files):
            with contextlib.suppress(OSError):
                shutil.rmtree(folder / ".hydra", ignore_errors=True)
                for log in folder.glob("*.log"):
                    log.unlink()
                # `outputs/DATE/TIME`, unless other runs are there.
                for empty in (folder, *list(folder.parents)[:2]):
                    if empty != Path.cwd():
                        empty.rmdir()
        raise


def _study_hint() -> str:
    """The command that continues the study after an interruption."""
    command = context.resume_command
    return "" if command is None else f"{STUDY_KEPT}{command}"


def _resume_hint(overrides: list[str], output_dir: str) -> str:
    """The command that continues a single trial after an interruption."""
    if Path(output_dir, ANSWERS_FILE).is_file():
        return f"; only verdicts are missing, go on with: lorahydra judges rejudge {shlex.quote(output_dir)}"
    ended = Path(output_dir, TRAINING_FILE).is_file()
    if not ended and not any(Path(output_dir, CHECKPOINTS_DIR).glob("checkpoint-*")):
        return "; run it again to start from the beginning (training.save_steps=N keeps checkpoints to go on from)"
    words = [without_password(override) for override in overrides]
    command = " ".join(shlex.quote(word) for word in (*words, "training.resume=true", f"hydra.run.dir={output_dir}"))
    return f"; go on with: {program_name()} {command}"


def train_command(arguments: list[str]) -> None:
    """`lorahydra train`: what `train.py` does in a checkout, for the installed package."""
    sys.argv = ["lorahydra train", *arguments]
    launch(hydra.main(config_path=str(config_dir()), config_name="config")(run_task))
