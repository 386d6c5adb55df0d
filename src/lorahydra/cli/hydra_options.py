"""Hydra's options of `train.py`: a wrong option gives one clear line, and no option prints secrets."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from lorahydra import __version__
from lorahydra.config.checks import lost_keys
from lorahydra.config.compat import options_parser
from lorahydra.config.showing import without_passwords
from lorahydra.errors import ConfigError

__all__ = ["hydra_arguments", "program_name", "shared_output"]

SECRET_VARIABLE = re.compile(r"(?i)(key|token|secret|password|credentials?)$")
SHORTEST_SECRET = 6
REPLACED = re.compile(r"~hydra[./](launcher|sweeper)(=.*)?|\+{0,2}hydra\.(launcher|sweeper)=(?!\s*\{).*", re.DOTALL)
"""An override that takes all keys of a part away; a mapping changes some."""
SHELLS = ("bash", "fish", "zsh")


def hydra_arguments(arguments: Sequence[str]) -> list[str]:
    """The arguments in the form in which they are passed to Hydra.

    Prints the version and exits if that is asked for.

    Raises:
        ConfigError: An option does not exist, or its value is not allowed.
    """
    parser = options_parser(f"lorahydra, version {__version__}")
    parser.error = _refuse  # type: ignore[method-assign]
    options = parser.parse_intermixed_args(list(arguments))
    rerun = options.experimental_rerun
    if rerun is not None and not Path(rerun, ".hydra", "hydra.yaml").is_file():
        _refuse(f"--experimental-rerun {rerun} is not the output folder of a run")
    for override in options.overrides:
        if replaced := REPLACED.fullmatch(override):
            raise lost_keys(override, replaced[1] or replaced[3])
    if options.shell_completion:
        _check_completion(options.overrides)
    elif (options.cfg or options.help) and options.resolve:
        # Hydra sets the folder of a run only when the run begins.
        return ["hydra.runtime.output_dir=${hydra:run.dir}", *arguments]
    return list(arguments)


@contextmanager
def shared_output(arguments: Sequence[str]) -> Iterator[None]:
    """Take passwords and keys out of a configuration that is printed: it ends up in issues and chats."""
    options, _ = options_parser(__version__).parse_known_intermixed_args(list(arguments))
    if not (options.cfg or options.info or options.help):
        yield
        return
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output):
            yield
    except SystemExit as ended:
        # Hydra has printed a line about a --package that does not exist.
        raise SystemExit(2 if ended.code == 1 else ended.code) from None
    finally:
        sys.stdout.write(_without_secrets(output.getvalue()))


def program_name() -> str:
    """How the program was called: `python train.py`, or `lorahydra train`."""
    called = sys.argv[0]
    return "lorahydra train" if Path(called).name.startswith("lorahydra") else f"python {called}"


def _refuse(message: str) -> NoReturn:
    raise ConfigError(f"{message} (see {program_name()} --help)")


def _check_completion(overrides: Sequence[str]) -> None:
    command, _, shell = overrides[0].partition("=") if overrides else ("", "", "")
    if program_name().startswith("lorahydra"):
        _refuse(
            "--shell-completion is an option of train.py: for lorahydra, use "
            'eval "$(_LORAHYDRA_COMPLETE=bash_source lorahydra)"'
        )
    if command not in ("install", "uninstall", "query") or shell not in SHELLS:
        _refuse(f"--shell-completion needs install=SHELL with SHELL one of {', '.join(SHELLS)}")
    if command == "query" and "COMP_LINE" not in os.environ:
        _refuse("--shell-completion query=… is for shells, which set COMP_LINE")


def _without_secrets(text: str) -> str:
    text = without_passwords(text)
    for name, value in os.environ.items():
        if SECRET_VARIABLE.search(name) and len(value) >= SHORTEST_SECRET:
            text = text.replace(value, "***")
    return text
