"""What the API and the page call.

```python
service = Service(ServiceConfig(folder=Path("lorahydra-service")))
service.open()                     # takes the folder, and finds running fine-tunes again
project = service.projects.create("Support")
job = service.jobs.start(project.id, FineTuneParams(use_llm_judge=False))
service.jobs.get(job.id).state
service.close()                    # running fine-tunes continue by themselves
```
Everything may be called from any thread. It raises `ServiceRefusal` (one line, a code, an HTTP status) for what the
caller can correct, and other kinds of `LorahydraError` when a store cannot be read.
"""

from __future__ import annotations

import dataclasses
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from lorahydra.errors import ConfigError
from lorahydra.service.answering import Answering
from lorahydra.service.choices import Choices
from lorahydra.service.comparing import Comparisons
from lorahydra.service.database import Database
from lorahydra.service.datasets import Datasets
from lorahydra.service.deleter import Deleter
from lorahydra.service.deletions import Deletions
from lorahydra.service.folders import DATASETS, JOBS, MODELS
from lorahydra.service.jobs import Jobs
from lorahydra.service.placing import check_placing
from lorahydra.service.projects import Projects
from lorahydra.service.results import Stores
from lorahydra.service.supervisor import Supervisor
from lorahydra.utils.files import locked, writing

__all__ = ["Service", "ServiceConfig"]


@dataclass(frozen=True)
class ServiceConfig:
    """How the service is set up."""

    folder: Path
    """Holds the database, datasets, jobs, MLflow's store and the studies' store."""
    storage: str | None = None
    """Database URL; None is `service.db` in the folder."""
    workers: int = 1
    """Number of fine-tunes that run at the same time."""
    upload_limit: int = 1 << 30
    """Largest size of a dataset in bytes."""
    models_folder: Path | None = None
    """Its subfolders can be chosen as base models; None is `models` in the service's folder."""
    overrides: tuple[str, ...] = ()
    """Hydra overrides for every fine-tune, for example `judge.base_url=http://127.0.0.1:8001/v1`."""
    request_seconds: float = 30.0
    """How long the head of a request may take, and a body before it has to come at 1 KiB/s at least."""
    retention_days: int | None = None
    """Days after their end for which fine-tunes and their datasets are kept; None keeps them."""
    mlflow_url: str | None = None
    """Address of MLflow's UI, for links."""
    studies: str | None = None
    """Database of the studies; None is `studies.db` in the folder."""
    tracking_uri: str | None = None
    """MLflow's store; None is `mlflow.db` in the folder."""


class Service:
    """Projects, datasets and fine-tunes on one folder and one database.

    `projects`, `datasets`, `jobs`, `comparisons`, `deletions` and `supervisor` exist once the service is open.
    """

    projects: Projects
    datasets: Datasets
    jobs: Jobs
    comparisons: Comparisons
    deletions: Deletions
    supervisor: Supervisor

    def __init__(self, config: ServiceConfig) -> None:
        folder = config.folder.absolute()
        self.config = dataclasses.replace(config, folder=folder)
        self.choices = Choices(config.models_folder or folder / "models", config.overrides)
        self.stores = Stores(folder, config.mlflow_url, config.studies, config.tracking_uri)
        self.answering = Answering()
        self.closing = threading.Event()
        """Set when the server is about to end, so that streams end too."""
        self._held = ExitStack()

    def open(self) -> None:
        """Take the folder and the database, and begin to run fine-tunes.

        Raises:
            ConfigError: Another server uses them, or the configuration is not valid.
            OutputError: The folder or the database cannot be used.
        """
        config, folder = self.config, self.config.folder
        self.choices.default_model()  # refuses overrides that no fine-tune could run with
        storage = config.storage or f"sqlite:///{folder / 'service.db'}"
        self.choices.runs_elsewhere = check_placing(config.overrides, storage, self.stores)
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(folder / "server", wait=False))
            except TimeoutError:
                raise ConfigError(
                    f"another lorahydra server uses the folder {folder}: stop it, or give --folder"
                ) from None
            for name in (JOBS, DATASETS, MODELS):
                with writing(folder):
                    (folder / name).mkdir(exist_ok=True)
            database = Database(storage)
            stack.callback(database.close)
            self.supervisor = Supervisor(database, folder / JOBS, config.workers, self.stores, self.choices)
            self.projects = Projects(database)
            self.datasets = Datasets(database, folder / DATASETS, config.upload_limit, config.overrides)
            stack.callback(self.datasets.close)
            self.datasets.tidy()
            self.jobs = Jobs(database, folder, self.choices, self.stores, self.supervisor.wake)
            self.comparisons = Comparisons(database, self.jobs, self.stores)
            deleter = Deleter(
                database, folder, self.stores, config.retention_days, self.answering.forget, self.datasets.expire
            )
            self.deletions = Deletions(
                database, folder, self.stores, deleter.wake, config.retention_days, self.datasets.forget
            )
            self.supervisor.start()
            stack.callback(self.supervisor.stop)
            deleter.start()
            stack.callback(deleter.stop)
            self._held = stack.pop_all()

    def close(self) -> None:
        """Start no more fine-tunes; those that run continue, and the next `open` finds them again."""
        self.closing.set()
        self.answering.close()
        self._held.close()
