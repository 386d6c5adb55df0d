"""Who started a run, from which code: MLflow's own tags for it."""

from __future__ import annotations

import contextlib
import getpass
import subprocess
import sys
from pathlib import Path

__all__ = ["source_tags"]

GIT_SECONDS = 5


def source_tags() -> dict[str, str]:
    """Tags `mlflow.user`, `mlflow.source.*` and, where the program lies in a Git repository, its commit."""
    program = Path(sys.argv[0] if sys.argv and sys.argv[0] not in ("", "-c") else sys.executable)
    tags = {"mlflow.source.name": str(program), "mlflow.source.type": "LOCAL"}
    with contextlib.suppress(OSError, KeyError):  # a container's user may have no name
        tags["mlflow.user"] = getpass.getuser()
    # A script's own repository. An installed command says nothing about the code; the folder it runs in may.
    folder = program.absolute().parent if program.suffix == ".py" else Path.cwd()
    if commit := _commit(folder):
        tags["mlflow.source.git.commit"] = commit
    return tags


def _commit(folder: Path) -> str | None:
    command = ["git", "-C", str(folder), "rev-parse", "--verify", "--quiet", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):  # no git here, or a repository on a hanging disk
        return None
    return done.stdout.strip() if done.returncode == 0 else None
