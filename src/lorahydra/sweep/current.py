"""The state of the sweep that this process runs; does not import Optuna.

The function of any program under `hydra/sweeper=lorahydra` may use it to be pruned:

```python
trial = current_trial()
if trial is not None:
    trial.measured(loss)  # raises TrialPruned if the trial should end here
```
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

if TYPE_CHECKING:
    from lorahydra.sweep.running_trial import RunningTrial
    from lorahydra.trial.place import TrialResult

__all__ = ["context", "current_trial"]


@dataclass
class ProcessContext:
    """State that Hydra does not pass from the program to the sweep, or from the sweep to the function of a trial."""

    arguments: list[str] | None = None
    """`sys.argv` of a program that is nothing but one experiment, so that workers can be started with it."""
    resume_command: str | None = None
    """The command that resumes the current study; None if no study runs."""
    trials: dict[int, RunningTrial] = field(default_factory=dict)
    """The trials that this process runs, by their number, which is also Hydra's job number."""
    packed: Mapping[int, Callable[[], TrialResult]] = field(default_factory=dict)
    """Gives the results of those trials that are trained side by side."""


context = ProcessContext()


def current_trial() -> RunningTrial | None:
    """The trial of the current Hydra job; None outside a sweep."""
    if not HydraConfig.initialized():
        return None
    job = HydraConfig.get().job
    return None if OmegaConf.is_missing(job, "num") else context.trials.get(job.num)
