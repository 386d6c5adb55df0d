"""MLflow: runs that go on while the store cannot be reached, and lose nothing that was logged.

```python
with start_run(config.tracking, output_dir=folder, kind=Kind.SINGLE, run_name="demo") as run:
    run.params({"lora.r": 16})
    run.metrics({"train/loss": 1.3}, step=10)
    unsent = run.finish(State.COMPLETE)
```

A study is a run with nested runs (`start_run(…, parent_run_id=…)`); several processes record it at once by
`join_run` and `TrackedRun.leave`.

Whatever is logged goes to a queue on disk first, and a background thread sends it. What could not be sent by
the end of a run is sent later by `sync` (on the command line: `lorahydra sync DIR`). This is the only package that
imports mlflow, and it does so when a run starts, not before.

Every function that is given an address or a `TrackingConfig` raises `ConfigError` if that is not the address of a
store, `NotRecordedError` if the store does not have the run, and `TrackingError` if it cannot be used.
"""

from lorahydra.tracking.children import close_run, find_run, set_tags, unfinished_children
from lorahydra.tracking.deleting import StoredRuns, delete_runs, stored_runs
from lorahydra.tracking.mlmodel import add_model_files, write_model_files
from lorahydra.tracking.models import RegisteredVersion, find_version, register_model, registered_name
from lorahydra.tracking.patience import patiently
from lorahydra.tracking.reading import (
    Points,
    RecordedRun,
    fetch_adapter,
    fetch_folder,
    read_metrics,
    read_run,
    read_text,
)
from lorahydra.tracking.run import TrackedRun
from lorahydra.tracking.start import add_to_run, check_store, join_run, reopen_run, start_run
from lorahydra.tracking.sync import SyncResult, find_unsent, sync

__all__ = [
    "Points",
    "RecordedRun",
    "RegisteredVersion",
    "StoredRuns",
    "SyncResult",
    "TrackedRun",
    "add_model_files",
    "add_to_run",
    "check_store",
    "close_run",
    "delete_runs",
    "fetch_adapter",
    "fetch_folder",
    "find_run",
    "find_unsent",
    "find_version",
    "join_run",
    "patiently",
    "read_metrics",
    "read_run",
    "read_text",
    "register_model",
    "registered_name",
    "reopen_run",
    "set_tags",
    "start_run",
    "stored_runs",
    "sync",
    "unfinished_children",
    "write_model_files",
]
