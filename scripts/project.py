"""What `mlflow run` calls: goes on as `lorahydra.cli.project`, with a Python that has lorahydra's packages.

python scripts/project.py ENTRY --NAME VALUE …

With `--env-manager local` the `python` on PATH need not be the one that runs MLflow: `.venv/bin/mlflow run .` works
without activating the environment. Only the standard library is used here.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

NEEDED = "hydra"
"""A package that every environment of lorahydra has."""


def main() -> None:
    """Replace this process by the entry point's."""
    source = str(Path(__file__).resolve().parents[1] / "src")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    python = sys.executable if importlib.util.find_spec(NEEDED) else python_of_mlflow()
    if python is None:
        sys.exit(
            f"lorahydra: {sys.executable} does not have lorahydra's packages: activate the environment that has them, "
            "or use --env-manager uv"
        )
    os.execv(python, [python, "-m", "lorahydra.cli.project", *sys.argv[1:]])


def python_of_mlflow() -> str | None:
    """The interpreter of the nearest calling process that has the packages; None where it cannot be seen."""
    for program in calling_programs():
        if Path(program).name.startswith("python") and os.access(program, os.X_OK):
            probe = [program, "-c", f"import importlib.util as i, sys; sys.exit(i.find_spec('{NEEDED}') is None)"]
            if subprocess.run(probe, check=False, capture_output=True).returncode == 0:
                return program
    return None


def calling_programs() -> Iterator[str]:
    """The programs of the calling processes, nearest first, by the path they were started with."""
    process = os.getppid()
    while process > 1:
        try:
            if Path("/proc/self").exists():
                # The name of the program, in brackets, may hold anything.
                parent = Path(f"/proc/{process}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[1]
                program = os.fsdecode(Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")[0])
            else:
                ask = ["ps", "-o", "ppid=,command=", "-p", str(process)]
                parent, program = subprocess.check_output(ask, text=True).strip().split(maxsplit=1)
            process = int(parent)
        except (OSError, ValueError, IndexError, subprocess.SubprocessError):
            return
        yield program


if __name__ == "__main__":
    main()
