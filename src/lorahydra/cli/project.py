"""The entry points of `MLproject`: parameters of `mlflow run` become overrides, and its run is the one recorded to.

MLflow calls `scripts/project.py ENTRY --NAME VALUE …` in the project's folder, which calls this module with a Python
that has lorahydra's packages. Relative paths and outputs belong to the folder that `mlflow run` was called in, which is
another one for a project that came from Git.
"""

from __future__ import annotations

import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lorahydra.cli.exits import exit_codes
from lorahydra.config.compose import config_dir, literal
from lorahydra.errors import ConfigError

__all__ = ["main", "overrides_of"]

SHELLS = ("sh", "bash", "dash", "zsh")
GROUP_CHOICE = r"[\w.-]+"
"""What `judge=…` may be: nothing of Hydra's grammar is in it."""


def main(arguments: Sequence[str]) -> None:
    """Run an entry point of `MLproject`.

    Args:
        arguments: Its name, then `--NAME VALUE` pairs.

    Raises:
        SystemExit: With the exit code.
    """
    with exit_codes():
        entry, *rest = arguments or [""]
        if entry not in ENTRIES:
            raise ConfigError(f"there is no entry point '{entry}': choose {', '.join(ENTRIES)}")
        parameters = _pairs(rest)
        command = ENTRIES[entry](parameters)
    project = Path.cwd()
    os.chdir(calling_folder())
    _start(project, command)


def _study(parameters: Mapping[str, str]) -> list[str]:
    return ["train.py", "-m", *_tracking(), *overrides_of(parameters)]


def _trial(parameters: Mapping[str, str]) -> list[str]:
    return ["train.py", *_tracking(), *overrides_of(parameters)]


def _evaluate(parameters: Mapping[str, str]) -> list[str]:
    own = dict(parameters)
    adapter = own.pop("adapter", "")
    if not adapter or adapter.startswith("-"):
        raise ConfigError("-P adapter=… is needed: the folder of an adapter, or the id of the MLflow run that has it")
    return ["lorahydra", "evaluate", adapter, *_tracking(), *overrides_of(own)]


def _demo(parameters: Mapping[str, str]) -> list[str]:
    return ["train.py", "-m", "experiment=demo", *_tracking(), *overrides_of(parameters)]


def _test(parameters: Mapping[str, str]) -> list[str]:
    return ["pytest", *_words("options", parameters.get("options", ""))]


ENTRIES: Mapping[str, Callable[[Mapping[str, str]], list[str]]] = {
    "main": _study,
    "trial": _trial,
    "evaluate": _evaluate,
    "demo": _demo,
    "test": _test,
}


def overrides_of(parameters: Mapping[str, str]) -> list[str]:
    """Hydra overrides for the parameters of an entry point; none for an empty value.

    The named parameters are values and nothing else, whatever is in them. Others are overrides by their key, in
    Hydra's grammar; `overrides` holds several of them, separated as words of a shell. Later ones win.

    Raises:
        ConfigError: A parameter cannot be what it says.
    """
    given = {name: value for name, value in parameters.items() if value.strip()}
    more = _words("overrides", given.pop("overrides", ""))
    overrides: list[str] = []
    for name, value in given.items():
        make = NAMED.get(name, lambda text, name=name: _by_key(name, text))
        overrides += make(value)
    for override in more:
        key, equals, _ = override.partition("=")
        if not re.fullmatch(r"\+{0,2}[\w./@-]+|~[\w./@-]+", key) or not (equals or key.startswith("~")):
            raise ConfigError(
                f"-P overrides has '{override}', which is not an override: write KEY=VALUE, with spaces between"
            )
    return [*overrides, *more]


def _judge(value: str) -> list[str]:
    return [f"judge={_choice('judge', value)}"]


def _model(value: str) -> list[str]:
    """A file of `conf/model`, else whatever `model.name_or_path` takes."""
    if re.fullmatch(GROUP_CHOICE, value) and (config_dir() / "model" / f"{value}.yaml").is_file():
        return [f"model={value}"]
    return [f"model.name_or_path={literal(value)}"]


def _data_file(value: str) -> list[str]:
    return ["data=local", f"data.train_file={literal(value)}"]


def _n_trials(value: str) -> list[str]:
    return [f"hydra.sweeper.n_trials={_whole('n_trials', value)}"]


def _name_of_study(value: str) -> list[str]:
    return [f"study={literal(value)}"]


def _seed(value: str) -> list[str]:
    return [f"seed={_whole('seed', value)}"]


NAMED: Mapping[str, Callable[[str], list[str]]] = {
    "judge": _judge,
    "model": _model,
    "data_file": _data_file,
    "n_trials": _n_trials,
    "study_name": _name_of_study,
    "seed": _seed,
}


def _by_key(name: str, value: str) -> list[str]:
    is_group = re.fullmatch(r"\w+", name) and (config_dir() / name).is_dir()
    if not is_group and not re.fullmatch(r"\+{0,2}\w+(/\w+)*[./@][\w./@-]+", name):
        raise ConfigError(f"-P {name}=… is neither a parameter (see MLproject) nor a key such as lora.r or training")
    return [f"{name}={value}"]


def _choice(name: str, value: str) -> str:
    if not re.fullmatch(GROUP_CHOICE, value):
        raise ConfigError(f"-P {name}={value} is not a name: give one such as none, gemini or gigachat")
    return value


def _whole(name: str, value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", value.strip()):
        raise ConfigError(f"-P {name}={value} is not a whole number")
    return int(value)


def _words(name: str, text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"-P {name}={text} cannot be split into words: a quote is not closed") from error


def _pairs(arguments: Sequence[str]) -> dict[str, str]:
    """MLflow writes each parameter as `--NAME VALUE`; names and values are the user's."""
    names, values = arguments[::2], arguments[1::2]
    if len(names) != len(values) or not all(name.startswith("--") for name in names):
        raise ConfigError(f"parameters are given as --NAME VALUE, not as {shlex.join(arguments)}")
    return {name.removeprefix("--"): value for name, value in zip(names, values, strict=True)}


def _tracking() -> list[str]:
    """Overrides for recording to the run that MLflow has opened."""
    uri, run_id = os.environ.get("MLFLOW_TRACKING_URI"), os.environ.get("MLFLOW_RUN_ID")
    overrides = [f"tracking.uri={literal(uri)}"] if uri else []
    return [*overrides, f"tracking.run_id={run_id}"] if run_id else overrides


def calling_folder() -> Path:
    """Working folder of the program that called `mlflow run`; our own where it cannot be seen."""
    import psutil

    try:
        for process in psutil.Process().parents():
            if process.name() not in SHELLS:
                return Path(process.cwd())
    except (psutil.Error, OSError):
        pass
    return Path.cwd()


def _start(project: Path, command: list[str]) -> None:
    """Go on as `python train.py …` of the project, or another of its programs."""
    program, *arguments = command
    if program == "pytest":
        raise SystemExit(
            subprocess.run([sys.executable, "-m", "pytest", *arguments], cwd=project, check=False).returncode
        )
    if program == "lorahydra":
        from lorahydra.cli import main as lorahydra

        sys.argv = ["lorahydra", *arguments]
        lorahydra()
        return
    script = str(project / program)
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
