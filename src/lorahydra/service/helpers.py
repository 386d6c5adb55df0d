"""Programs that work for a request, such as a check: they are gone with the server, even if it is killed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from typing import Any

from lorahydra.utils.processes import at_end_of_input

__all__ = ["end_with_server", "run_helper"]


def run_helper(command: Sequence[str], seconds: float, **options: Any) -> bytes:
    """The output of a program that calls `end_with_server`.

    Args:
        command: The program and its arguments.
        seconds: Its time limit.
        options: More of `subprocess.run`.

    Raises:
        subprocess.TimeoutExpired: It took longer.
    """
    read, write = os.pipe()  # the input ends with the process that holds its other end
    try:
        output: bytes = subprocess.run(
            command, stdin=read, capture_output=True, timeout=seconds, check=False, **options
        ).stdout
    finally:
        os.close(read)
        os.close(write)
    return output


def end_with_server() -> None:
    """End this process when the server is gone, whatever it is doing."""
    at_end_of_input(lambda: os._exit(1))
