"""Studies from Python, for scripts and notebooks.

```python
from lorahydra import LoRATuner

result = LoRATuner(model="Qwen/Qwen3-0.6B", data="my.jsonl", judge="gemini", n_trials=20).run()
print(result.best_params, result.best_score, result.adapter)
```
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.utils import setup_globals
from hydra.errors import HydraException
from hydra.initialize import get_gh_backup, restore_gh_from_backup
from omegaconf.errors import OmegaConfBaseException

from lorahydra.config.compat import main_hydra
from lorahydra.config.compose import config_dir, explain, hydra_overrides, register
from lorahydra.config.showing import password_in_environment, without_password
from lorahydra.errors import ConfigError, StudyError
from lorahydra.sweep.study_result import StudyResult
from lorahydra.sweep.study_trial import study_task
from lorahydra.utils.interrupts import listening

__all__ = ["LoRATuner"]


class LoRATuner:
    """Searches for the best adapter, as `python train.py -m` does, with the same configs, databases and folders.

    `run` prints what the `lorahydra` loggers say if no logging is set up, as in a fresh notebook. Where logging is set
    up, it decides what is shown.

    Args:
        model: Hub id, local folder, packaged model, or a choice of `conf/model`; the default model when None.
        data: A file, a saved `datasets` folder, or a choice of `conf/data`; the demo dataset when None.
        judge: A registered judge, or `none`.
        n_trials: Finished trials at which the study ends; `LORA_N_TRIALS`, or 20, when None.
        overrides: More Hydra overrides, sweeps among them, for example
            `["training.learning_rate=tag(log, interval(1e-5, 1e-3))", "lora.r=choice(8, 16)"]`.
        study: Name of the study; a study that already exists is resumed. A new unique name when None.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        data: str | Path | None = None,
        judge: str = "none",
        n_trials: int | None = None,
        *,
        overrides: Sequence[str] = (),
        study: str | None = None,
    ) -> None:
        given = [*_choice("model", model, "model.name_or_path"), *_choice("data", data, "data.train_file")]
        given.append(f"judge={judge}")
        if n_trials is not None:
            given.append(f"hydra.sweeper.n_trials={n_trials}")
        if study is not None:
            given.append(f"study={_quoted(study)}")
        self.overrides = [*given, *overrides]
        """All Hydra overrides, as they would stand on the command line."""

    def __repr__(self) -> str:
        return f"LoRATuner(overrides={[without_password(override) for override in self.overrides]})"

    def run(self) -> StudyResult:
        """Run the study to its end; an interrupted study is resumed if its name is given again.

        Raises:
            LorahydraError: The study cannot go on; the message says why, in one line.
        """
        register()
        overrides = password_in_environment(hydra_overrides(self.overrides))
        backup = get_gh_backup()
        try:
            setup_globals()
            hydra = main_hydra(config_dir())
            # A notebook has its own logging.
            quiet = ["hydra/job_logging=none", "hydra/hydra_logging=none"]
            with listening(), _printed_log():
                result: Any = hydra.multirun("config", study_task, [*quiet, *overrides], with_log_configuration=False)
        except (HydraException, OmegaConfBaseException) as error:
            raise explain(error) from error
        finally:
            restore_gh_from_backup(backup)
        if result is None:
            raise StudyError("the last trials run in other processes: run this again when they are done")
        if not isinstance(result, StudyResult):
            raise ConfigError("hydra/sweeper must be lorahydra")
        return result


@contextmanager
def _printed_log() -> Iterator[None]:
    """Print the log inside the block, unless the program has set up logging in any way."""
    root, ours = logging.getLogger(), logging.getLogger("lorahydra")
    if root.handlers or root.level != logging.WARNING or ours.handlers or ours.level:
        yield
        return
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    ours.propagate = False  # another library may give the root a handler meanwhile
    try:
        yield
    finally:
        ours.propagate = True
        ours.setLevel(logging.NOTSET)
        ours.removeHandler(handler)


def _choice(group: str, value: str | Path | None, key: str) -> list[str]:
    if value is None:
        return []
    if re.fullmatch(r"\w+", str(value)) and (config_dir() / group / f"{value}.yaml").is_file():
        return [f"{group}={value}"]
    return [f"{group}=local", f"{key}={_quoted(str(value))}"]


def _quoted(value: str) -> str:
    """A text quoted for Hydra's grammar, commas included."""
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
