"""What `mlflow run` calls: goes on as `lorahydra.cli.project`, with a Python that has lorahydra's packages.

python scripts/project.py PROCESS ENTRY --NAME VALUE …

With `--env-manager local` the `python` on PATH need not be the one that runs MLflow (PROCESS): `.venv/bin/mlflow run .`
works without activating the environment. Only the standard library is used here.
"""

import os
import subprocess
import sys
from pathlib import Path

PROBE = "import importlib.util, sys; sys.exit(importlib.util.find_spec('hydra') is None)"
"""Ends with 0 if a Python has the packages."""


def main() -> None:
    """Replace this process by the entry point's."""
    source = str(Path(__file__).resolve().parents[1] / "src")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    for python in (sys.executable, program_of(sys.argv[1])):
        if Path(python).name.startswith("python") and subprocess.call([python, "-c", PROBE]) == 0:
            os.execv(python, [python, "-m", "lorahydra.cli.project", *sys.argv[1:]])
    sys.exit(
        f"lorahydra: {sys.executable} does not have lorahydra's packages: activate the environment that has them, "
        "or use --env-manager uv"
    )


def program_of(process: str) -> str:
    """The program of a process, by the path that it was started with."""
    try:
        return os.fsdecode(Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")[0])
    except OSError:
        return subprocess.run(["ps", "-o", "comm=", "-p", process], capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
