"""Weights & Biases' offline runs, in `wandb/` of a trial's output folder: `wandb sync outputs/*/*/wandb/offline-run-*`.

Nothing is sent unless the user sets `WANDB_MODE=online`.
"""

from __future__ import annotations

import os
from pathlib import Path

# Otherwise wandb looks up the address of the service that its own errors are reported to.
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")

import wandb

from lorahydra.tracking.operations import Operation
from lorahydra.tracking.spool import Header

__all__ = ["OfflineWandb"]


class OfflineWandb:
    """A run with MLflow's id and name; the trials of a study are a group."""

    def __init__(self, folder: Path, header: Header) -> None:
        for name in ("WANDB_MODE", "WANDB_PROJECT"):
            if not os.environ.get(name):  # wandb takes an empty one for a wrong value
                os.environ.pop(name, None)
        self._run = wandb.init(
            mode=None if "WANDB_MODE" in os.environ else "offline",
            dir=str(folder),
            id=header.run_id,
            name=header.run_name,
            group=header.study,
            project=os.environ.get("WANDB_PROJECT", "lorahydra"),
            # Trials that are trained as a pack have runs at the same time.
            reinit="create_new",
            settings=wandb.Settings(
                console="off", disable_git=True, save_code=False, silent=True, x_disable_meta=True, x_disable_stats=True
            ),
        )
        # Its own steps only rise, and metrics of one step come at several times.
        self._run.define_metric("*", step_metric="step")
        self._failed = False

    def write(self, operation: Operation) -> None:
        """Write metrics beside their step, and params as the run's configuration."""
        if operation["op"] == "metrics":
            self._run.log({**operation["values"], "step": operation["step"], "_timestamp": operation["time"] / 1000})
        elif operation["op"] == "params":
            self._run.config.update(operation["values"], allow_val_change=True)  # type: ignore[no-untyped-call]
        elif operation["op"] == "finish":
            self._failed = operation["status"] == "FAILED"

    def close(self) -> None:
        """End wandb's run."""
        self._run.finish(exit_code=1 if self._failed else 0)
