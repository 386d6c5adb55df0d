"""The entry points of `MLproject`: parameters of `mlflow run` become overrides, and results are recorded in its run.

MLflow calls `scripts/project.py PROCESS ENTRY --NAME VALUE …` in the project's folder, which calls this module with a
Python that has lorahydra's packages. PROCESS is the id of the process of `mlflow run`. Relative paths and outputs are
relative to the folder in which it was called, which is not the project's folder if the project comes from Git.
"""

from __future__ import annotations

import contextlib
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from lorahydra.cli.exits import exit_codes
from lorahydra.config.compose import config_dir, literal
from lorahydra.errors import ConfigError

__all__ = ["main", "overrides_of"]

ENTRIES = {
    "main": ["train.py", "-m"],
    "trial": ["train.py"],
    "evaluate": ["lorahydra", "evaluate"],
    "demo": ["train.py", "-m", "experiment=demo"],
    "test": ["pytest"],
}
"""The command that each entry point starts, without its parameters."""
CHECKED = {
    "judge": ("judge", r"[\w.-]+", "a name such as none, gemini or gigachat"),
    "n_trials": ("hydra.sweeper.n_trials", "[0-9]{1,9}", "a whole number"),
    "seed": ("seed", "[0-9]{1,9}", "a whole number"),
}
"""For each parameter with a fixed form: its key, a pattern that admits nothing of Hydra's grammar, and the form in
words."""
TEXTS = {"model": "model.name_or_path", "data_file": "data.train_file", "study_name": "study"}
"""Key of each parameter that may be any text."""


def main(arguments: Sequence[str]) -> None:
    """Run an entry point of `MLproject`.

    Args:
        arguments: The id of MLflow's process, the entry's name, then the user's `--NAME VALUE` pairs.
    """
    process, entry, *rest = arguments
    names, values = rest[::2], rest[1::2]
    with exit_codes():
        if len(names) != len(values) or not all(name.startswith("--") for name in names):
            raise ConfigError(f"parameters are given as --NAME VALUE, not as {shlex.join(rest)}")
        parameters = {name.removeprefix("--"): value for name, value in zip(names, values, strict=True)}
        command = _command(entry, parameters)
    project = Path.cwd()
    if command[0] == "pytest":
        sys.exit(subprocess.call([sys.executable, "-m", *command]))
    with contextlib.suppress(
        psutil.Error, OSError
    ):  # not every system tells the folder: outputs then go to the project
        os.chdir(psutil.Process(int(process)).cwd())
    if command[0] == "lorahydra":
        from lorahydra.cli import main as lorahydra

        sys.argv = command
        lorahydra()
    else:
        sys.argv = [str(project / command[0]), *command[1:]]
        runpy.run_path(sys.argv[0], run_name="__main__")


def _command(entry: str, parameters: dict[str, str]) -> list[str]:
    """The command that an entry point starts: the program and its arguments."""
    if entry == "test":
        return [*ENTRIES[entry], *_words("options", parameters.get("options", ""))]
    command = list(ENTRIES[entry])
    if entry == "evaluate":
        adapter = parameters.pop("adapter", "")
        if not adapter or adapter.startswith("-"):
            raise ConfigError("-P adapter=… is needed: an adapter's folder, or the id of the MLflow run that has it")
        command.append(adapter)
    # The run that MLflow has opened.
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        command.append(f"tracking.uri={literal(uri)}")
    if run_id := os.environ.get("MLFLOW_RUN_ID"):
        command.append(f"tracking.run_id={run_id}")
    return [*command, *overrides_of(parameters)]


def overrides_of(parameters: Mapping[str, str]) -> list[str]:
    """Hydra overrides for the parameters of an entry point; none for an empty value.

    The values of the named parameters are taken literally. Any other parameter is an override by its key, in Hydra's
    grammar; `overrides` holds several of them, separated as words of a shell. Later ones win.

    Raises:
        ConfigError: A parameter does not have the form that it must have.
    """
    given = {name: value for name, value in parameters.items() if value.strip()}
    more = _words("overrides", given.pop("overrides", ""))
    for override in more:
        key, equals, _ = override.partition("=")
        if not re.fullmatch(r"\+{0,2}[\w./@-]+|~[\w./@-]+", key) or not (equals or key.startswith("~")):
            raise ConfigError(
                f"-P overrides has '{override}', which is not an override: write KEY=VALUE, with spaces between"
            )
    return [override for name, value in given.items() for override in _overrides(name, value)] + more


def _overrides(name: str, value: str) -> list[str]:
    if name in CHECKED:
        (key, form, what), text = CHECKED[name], value.strip()
        if not re.fullmatch(form, text):
            raise ConfigError(f"-P {name}={value} is not {what}")
        return [f"{key}={int(text) if text.isdecimal() else text}"]
    if name == "model" and re.fullmatch(r"[\w.-]+", value) and (config_dir() / "model" / f"{value}.yaml").is_file():
        return [f"model={value}"]
    if name in TEXTS:
        return [*(["data=local"] if name == "data_file" else []), f"{TEXTS[name]}={literal(value)}"]
    is_group = re.fullmatch(r"\w+", name) and (config_dir() / name).is_dir()
    if not is_group and not re.fullmatch(r"\+{0,2}\w+(/\w+)*[./@][\w./@-]+", name):
        raise ConfigError(f"-P {name}=… is neither a parameter (see MLproject) nor a key such as lora.r or training")
    return [f"{name}={value}"]


def _words(name: str, text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"-P {name}={text} cannot be split into words: a quote is not closed") from error


if __name__ == "__main__":
    main(sys.argv[1:])
