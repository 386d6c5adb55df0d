"""Parts of Hydra that are private, or whose place may change, each with the reason why the public API is not enough.

No other module imports or reads them. `tests/config/test_compat.py` tests what is relied on; `make upgrade-check` runs
it with the newest versions that pyproject.toml allows.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_automatic_config_search_path, get_args_parser
from hydra.core.utils import JobReturn

__all__ = ["BasicLauncher", "launcher_log", "main_hydra", "options_parser", "outcome"]

# `BasicLauncher` has no public name. The launcher in use decides whether trials run in this process.

launcher_log = BasicLauncher.__module__
"""Name of the logger that lists every override of every job; it is the name of a private module."""


def main_hydra(config_dir: Path) -> Hydra:
    """Hydra, set up as `@hydra.main` does it.

    The public API has only `@hydra.main`, which reads the command line and exits the process, and `compose`, which does
    not run a sweeper.
    """
    search_path = create_automatic_config_search_path(None, None, str(config_dir))
    return Hydra.create_main_hydra2("lorahydra", search_path)


def options_parser(version: str) -> argparse.ArgumentParser:
    """The parser of the options that `@hydra.main` adds to a program; Hydra does not make it public.

    `version` is printed by `--version` in place of Hydra's version; argparse has no public way to change it.
    """
    parser: argparse.ArgumentParser = get_args_parser()
    for action in parser._actions:
        if isinstance(action, argparse._VersionAction):
            action.version = version
    return parser


def outcome(job: JobReturn) -> Any:
    """What a job returned or the exception that ended it.

    `JobReturn.return_value` prints to stderr and raises if the job failed.
    """
    return job._return_value
