"""Who started a run, from which code: MLflow's own tags for it."""

from __future__ import annotations

import contextlib
import getpass
import sys

from lorahydra.utils.environment import git

__all__ = ["source_tags"]


def source_tags() -> dict[str, str]:
    """Tags `mlflow.user`, `mlflow.source.*` and, where the program lies in a Git repository, its commit."""
    program = sys.argv[0] if sys.argv and sys.argv[0] not in ("", "-c") else sys.executable
    tags = {"mlflow.source.name": program, "mlflow.source.type": "LOCAL"}
    with contextlib.suppress(OSError, KeyError):  # a container's user may have no name
        tags["mlflow.user"] = getpass.getuser()
    if commit := git("rev-parse", "--verify", "--quiet", "HEAD"):
        tags["mlflow.source.git.commit"] = commit
    return tags
