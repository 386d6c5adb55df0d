"""MLflow: runs that keep going while the store is away, and lose nothing that was logged.

```python
with start_run(config.tracking, output_dir=folder, kind=Kind.SINGLE, run_name="demo") as run:
    run.params({"lora.r": 16})
    run.metrics({"train/loss": 1.3}, step=10)
    unsent = run.finish(State.COMPLETE)
```

Whatever is logged goes to a queue on disk first; a background thread sends it on. What could not be sent by
the end is sent later by `sync` (on the command line: `lorahydra sync DIR`). This is the only package that
imports mlflow, and it does so when a run starts, not before.
"""

from lorahydra.tracking.run import TrackedRun, Unsent
from lorahydra.tracking.start import check_store, reopen_run, start_run
from lorahydra.tracking.sync import SyncedRun, SyncResult, find_unsent, sync

__all__ = [
    "SyncResult",
    "SyncedRun",
    "TrackedRun",
    "Unsent",
    "check_store",
    "find_unsent",
    "reopen_run",
    "start_run",
    "sync",
]
